"use strict";
// what the pages of iclkit have in common
const shared = (() => {
  // ---- small helpers: every text from the data goes through text nodes or setAttribute, never through markup
  const $ = (id) => document.getElementById(id);
  const maker = (create) => (tag, attrs, ...kids) => {
    const node = create(tag);
    for (const [key, value] of Object.entries(attrs ?? {})) {
      if (value === undefined || value === null || value === false) continue;
      if (typeof value === "function") node.addEventListener(key, value);
      else node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...kids.flat(Infinity).filter((kid) => kid !== null && kid !== undefined));
    return node;
  };
  const h = maker((tag) => document.createElement(tag));
  const s = maker((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  const unique = (items) => [...new Set(items)];
  const clip = (text, count) => (text.length > count ? `${text.slice(0, Math.max(1, count - 1))}…` : text);
  const field = (label, control) => h("label", {}, label, control);
  const changed = (node, act) => { for (const kind of ["input", "change"]) node.addEventListener(kind, act); };
  // ---- copying: a page that was opened from a file may have no clipboard of its own
  const copyButton = (label, text, where) => {
    const button = h("button", { type: "button", class: "quiet", click: async () => {
      try { await navigator.clipboard.writeText(text()); } catch {
        const area = h("textarea", { readonly: true, "aria-hidden": "true", class: "offscreen" });
        area.value = text();
        (where ?? document.body).append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
        button.focus();
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = label; }, 1500);
    } }, label);
    return button;
  };
  // ---- theme: the system's, or the one that the reader has chosen with the button
  const followTheme = () => {
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    const stored = () => { try { return localStorage.getItem("iclkit-theme"); } catch { return null; } };
    const theme = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
    const nameTheme = () => { $("theme").textContent = theme() === "dark" ? "Light theme" : "Dark theme"; };
    if (["light", "dark"].includes(stored())) document.documentElement.dataset.theme = stored();
    $("theme").addEventListener("click", () => {
      const next = theme() === "dark" ? "light" : "dark";
      document.documentElement.dataset.theme = next;
      try { localStorage.setItem("iclkit-theme", next); } catch { /* a page opened from a file may have no storage */ }
      nameTheme();
    });
    dark.addEventListener("change", nameTheme);
    nameTheme();
  };
  return { $, h, s, unique, clip, field, changed, copyButton, followTheme };
})();
