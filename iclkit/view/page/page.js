(() => {
  const { $, h, s, clip, field, changed, copyButton } = shared;
  shared.followTheme();

  // ---- the key of this page: behind the # of its address once, then kept with this tab
  const PARTS = ["picks", "map", "pool", "runs"];
  const stored = (value) => {
    try {
      if (value !== undefined) sessionStorage.setItem("iclkit-view", value);
      return sessionStorage.getItem("iclkit-view") ?? "";
    } catch { return value ?? ""; } // without storage a reload needs the address again
  };
  const takeKey = () => {
    const given = location.hash.slice(1);
    if (!given || PARTS.includes(given)) return stored();
    history.replaceState(null, "", location.pathname);
    return stored(given);
  };
  const token = takeKey();
  window.addEventListener("hashchange", () => {
    if (location.hash.slice(1) && !PARTS.includes(location.hash.slice(1))) { takeKey(); location.reload(); }
  });

  class Refused extends Error {
    constructor(text, status, now) { super(text); this.status = status; this.now = now; }
  }
  const api = async (path, body) => {
    const headers = { "X-ICLKIT-Token": token };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let answer;
    try {
      answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch {
      throw new Refused("iclkit view does not answer: start it again in the terminal", 0);
    }
    let data = {};
    try { data = await answer.json(); } catch { /* the status says enough */ }
    if (!answer.ok) throw new Refused(data.error?.message ?? `the answer was ${answer.status}`, answer.status, data.now);
    return data;
  };
  const rowOf = (id) => api(`api/rows/${encodeURIComponent(id)}`);
  const trouble = (error) => {
    $("trouble").hidden = !error;
    $("trouble").textContent = error ? error.message : "";
    if (error) $("trouble").scrollIntoView({ block: "nearest" });
  };
  // one thing at a time of each kind: an answer that comes too late is dropped
  const turns = {};
  const latest = async (kind, work) => {
    const mine = (turns[kind] = (turns[kind] ?? 0) + 1);
    try {
      const found = await work();
      return mine === turns[kind] ? found : undefined;
    } catch (error) {
      if (mine === turns[kind]) trouble(error);
      return undefined;
    }
  };
  const number = (n) => n.toLocaleString("en");
  const count = (n, noun) => `${number(n)} ${noun}${n === 1 ? "" : "s"}`;
  const score = (x) => (Number.isInteger(x) ? `${x}` : Math.abs(x) >= 0.001 ? x.toFixed(3) : x.toPrecision(2)).replace("-", "−");
  const nth = (n) => `${n}${n % 100 > 10 && n % 100 < 14 ? "th" : { 1: "st", 2: "nd", 3: "rd" }[n % 10] ?? "th"}`;
  const SIDES = [["first", "left"], ["second", "right"]];
  const sign = () => h("span", { class: "sign", "aria-hidden": "true" });

  let about = null, drawn = null, answer = null;

  // ---- the question
  const inputs = () => [...$("query").querySelectorAll("textarea")];
  const queryNow = () => (about.fields.length ? Object.fromEntries(inputs().map((x) => [x.dataset.field, x.value])) : inputs()[0].value);
  let source = null; // the id of the example that the query is
  const setSource = (id) => {
    source = id;
    $("source").hidden = !id;
    $("source").textContent = id ? `This query is example ${id.slice(0, 12)} of the pool, which is not shown for itself.` : "";
  };
  const setQuery = (input, id) => {
    for (const area of inputs()) area.value = typeof input === "string" ? input : input[area.dataset.field] ?? "";
    setSource(id);
  };
  const buildQuestion = () => {
    $("query").replaceChildren(...(about.fields.length ? about.fields : [null]).map((name) => {
      const area = h("textarea", { rows: about.fields.length > 1 ? 1 : 2, dir: "auto", "data-field": name, "aria-label": name ?? "Query", placeholder: name ? null : "A new input, as your application would get it" });
      area.addEventListener("input", () => setSource(null));
      return name ? field(name, area) : area;
    }));
    $("common").replaceChildren(
      field("Demonstrations (k)", h("input", { type: "number", id: "k", min: 0, max: 256, value: 4, required: true })),
      field("Order in the prompt", h("select", { id: "order" }, about.orders.map((x) => h("option", { value: x, selected: x === "best-last" }, x)))));
    $("sides").replaceChildren(...SIDES.map((_, n) => buildSide(n)));
  };
  const sides = [];
  const buildSide = (n) => {
    const [cls, word] = SIDES[n], first = about.embedder ? ["knn", "bm25"][n] : ["bm25", "random"][n];
    const select = h("select", { "aria-label": `Selector on the ${word}` }, about.selectors.map((x) => h("option", { value: x.name, selected: x.name === first }, x.name)));
    const summary = h("p", { class: "summary" }), settings = h("div", { class: "settings" }), head = h("summary"), box = h("details", {}, head, settings);
    const side = { select, values: {}, typed: {} };
    const tell = (one) => {
      const set = Object.entries(side.values);
      head.textContent = set.length ? `Settings: ${set.map(([k, v]) => `${k}=${clip(v, 30)}`).join(", ")}` : `${count(one.settings.length, "setting")}, ${one.settings.length === 1 ? "at its default" : "all at their defaults"}`;
    };
    const show = () => {
      const one = about.selectors.find((x) => x.name === select.value), lacks = ["embedder", "lm", "reranker"].filter((part) => one.needs.includes(part) && !about.has[part]);
      side.values = side.typed[one.name] ??= {};
      summary.textContent = `Chooses ${one.summary}.` + (lacks.length ? ` Needs ${lacks.map((x) => `--${x}`).join(" and ")}, which this page was started without.` : "");
      box.hidden = !one.settings.length;
      settings.replaceChildren(...one.settings.map((info) => {
        const id = `set-${n}-${info.name}`, now = side.values[info.name] ?? "";
        const input = info.choices.length
          ? h("select", { id, "aria-describedby": `${id}-says` }, h("option", { value: "" }, `${info.default} (default)`), info.choices.filter((c) => c !== info.default).map((c) => h("option", { value: c, selected: c === now }, c)))
          : h("input", { id, type: "text", value: now, placeholder: info.default ?? "has to be given", spellcheck: "false", autocapitalize: "off", "aria-describedby": `${id}-says` });
        changed(input, () => {
          if (input.value.trim()) side.values[info.name] = input.value.trim();
          else delete side.values[info.name];
          tell(one);
        });
        return h("div", {}, h("label", { for: id }, info.name), input, h("p", { id: `${id}-says` }, `${info.meaning}; takes ${info.allowed}`));
      }));
      tell(one);
    };
    select.addEventListener("change", show);
    show();
    sides[n] = side;
    return h("fieldset", { class: `side ${cls}` }, h("legend", {}, sign(), `Selector on the ${word}`), select, summary, box);
  };
  // paid: for each side, whether it may ask the language model
  const ask = async (paid = []) => {
    const query = queryNow(), text = typeof query === "string" ? query : Object.values(query).join("");
    if (!text.trim()) {
      $("state").textContent = "Type a query first.";
      inputs()[0].focus();
      return;
    }
    trouble(null);
    $("go").disabled = true;
    $("state").textContent = "choosing …";
    const body = { query, k: Number($("k").value || 0), order: $("order").value, exclude: source ? [source] : [], paid,
      sides: sides.map((x) => ({ selector: x.select.value, settings: x.values })) };
    const found = await latest("ask", () => api("api/select", body));
    $("go").disabled = false;
    $("state").textContent = "";
    if (!found) return;
    answer = found;
    showAnswer();
    drawPicks();
  };

  // ---- the answers
  const why = (pick, n) => {
    const said = [`score ${score(pick.score)}`];
    if (pick.random) said.push("drawn at random: nothing speaks for it");
    if (pick.cosine !== null) said.push(`cosine ${pick.cosine.toFixed(3)}`);
    said.push(pick.words.length ? `shares ${pick.words.join(", ")}` : "shares no word");
    if (pick.elsewhere) said.push(`${nth(pick.elsewhere)} on the ${SIDES[1 - n][1]}`);
    if (pick.tokens !== null) said.push(count(pick.tokens, "token").replace(" ", "\u00a0"));
    return said.join(" · ");
  };
  const showAnswer = () => {
    const [a, b] = answer.sides.map((side) => (side.picks ? new Set(side.picks.map((p) => p.id)) : null));
    const same = a && b ? [...a].filter((x) => b.has(x)).length : 0;
    $("compared").textContent = a && b ? `${same || "None"} of ${count(Math.max(a.size, b.size), "demonstration")} ${same === 1 ? "is" : "are"} the same on both sides.`
      : answer.sides.some((x) => x.cost) ? "A selector that asks the language model waits for your word." : "A selector has not answered.";
    $("answers").replaceChildren(...answer.sides.map(showSide));
  };
  const showSide = (side, n) => {
    const [cls, word] = SIDES[n], id = `answer-${n}`, name = side.selector ?? sides[n].select.value;
    const box = (...kids) => h("section", { class: `answer side ${cls}`, "aria-labelledby": id }, h("h3", { id }, sign(), name), kids);
    if (side.error) return box(h("p", { class: "error", role: "alert" }, side.error));
    if (side.cost) {
      return box(h("p", { class: "note" }, `It has the language model read at most ${count(side.cost.texts, "text")}` + (side.cost.task ? `, ${number(side.cost.task)} of them once for the whole pool.` : ".")),
        h("button", { type: "button", class: "quiet", click: () => ask(answer.sides.map((x, i) => i === n || Boolean(x.picks))) }, "Ask the model"));
    }
    const prompt = side.prompt, time = side.seconds < 0.995 ? `${Math.max(1, Math.round(1000 * side.seconds))} ms` : `${side.seconds.toFixed(1)} s`;
    const size = prompt.tokens === null ? `${count(prompt.characters, "character")} (--lm counts tokens)` : count(prompt.tokens, "token");
    return box(
      h("p", { class: "note" }, `${count(side.picks.length, "pick")} in ${time}`),
      side.notes.map((text) => h("p", { class: "note" }, `Note: ${text}.`)),
      h("ol", { class: "picks", "aria-label": `Picks of ${name}, best first` }, side.picks.map((pick) => {
        const item = h("li", {}, h("span", { class: "rank", "aria-hidden": "true" }, `${pick.rank}`), h("div", {},
          h("button", { type: "button", class: "link", dir: "auto", "aria-label": `Open pick ${pick.rank} on the ${word}: ${clip(pick.input, 100)}`, click: () => openRow(pick.id) }, pick.input || "(no text)"),
          h("div", { class: "says", dir: "auto" }, pick.output || "(no output)"),
          h("div", { class: "why" }, why(pick, n))));
        for (const kind of ["mouseenter", "focusin"]) item.addEventListener(kind, () => light(n, pick.id, true));
        for (const kind of ["mouseleave", "focusout"]) item.addEventListener(kind, () => light(n, pick.id, false));
        return item;
      })),
      side.story.length ? h("details", {}, h("summary", {}, "How it came about"), h("ol", { class: "story" }, side.story.map((text) => h("li", { dir: "auto" }, text)))) : null,
      h("details", { open: true }, h("summary", {}, `The prompt: ${size}, ${count(prompt.shown.length, "demonstration")}`),
        prompt.dropped.length ? h("p", { class: "note" }, `${count(prompt.dropped.length, "demonstration")} not shown: ${prompt.dropped[0].reason}.`) : null,
        h("p", { class: "soft key" }, "Numbered: ", h("span", { class: "demo" }, "a demonstration"), ", its ", h("span", { class: "output" }, "answer"), "; ", h("span", { class: "asked" }, "the query"), "."),
        showPrompt(prompt, `The prompt of ${name}`),
        prompt.pieces.some((p) => p[3]) ? null : copyButton("Copy the prompt", () => prompt.pieces.map((p) => p[1]).join(""))));
  };
  const showPrompt = (prompt, label) => {
    const from = prompt.pieces.findIndex(([kind]) => kind === "query"), blocks = [];
    // the template's own words before the query's first field belong to it, back to the last separator
    prompt.pieces.forEach(([kind, text, id, more], i) => {
      const of = id ? `demo ${id}` : kind === "instruction" ? "opening" : kind === "query" || (from >= 0 && i >= from) || i === from - 1 ? "asked" : "glue";
      if (blocks.at(-1)?.of !== of) blocks.push({ of, parts: [] });
      blocks.at(-1).parts.push(h("span", { class: kind }, text, more ? h("span", { class: "missing" }, `[… ${count(more, "more character")}]`) : null));
    });
    return h("pre", { tabindex: "0", role: "region", "aria-label": label }, blocks.map((b) => h("span", { class: b.of.split(" ")[0] }, b.parts)));
  };

  // ---- the map
  // drawn anew at every width, with one scale for both directions
  const size = { width: 0, height: 0, unit: 1, top: 0 };
  const xy = ([x, y]) => [size.width / 2 + x * size.unit, (size.top - y) * size.unit + MARGIN];
  const MARGIN = 22;
  const measure = (width) => {
    const ys = drawn.points.map((p) => p.at[1]), reach = Math.max(0.5, ...drawn.points.map((p) => Math.abs(p.at[0])));
    size.width = width;
    size.unit = (width / 2 - MARGIN) / reach;
    const low = Math.min(...ys, -0.35), high = Math.max(...ys, 0.35), tallest = Math.min(640, Math.max(300, width * 0.75));
    size.unit = Math.min(size.unit, (tallest - 2 * MARGIN) / (high - low));
    size.top = high;
    size.height = Math.round((high - low) * size.unit + 2 * MARGIN);
  };
  const layer = {};
  let here = -1;
  const drawnWords = () => `${count(drawn.points.length, "example")}${drawn.points.length < drawn.total ? ` drawn at random from the pool's ${number(drawn.total)}` : " of the pool"}`;
  const drawMap = async () => {
    const found = await latest("map", () => api("api/map"));
    if (!found) return;
    drawn = found;
    here = -1;
    $("map-at").textContent = "";
    $("map-words").hidden = !drawn.points.length;
    if (!drawn.points.length) {
      $("map-note").textContent = "The pool is empty.";
      $("map-box").replaceChildren();
      return;
    }
    const by = drawn.by ? `by the vectors of ${drawn.by}` : "by parts of their words; with an embedder it would be by meaning";
    $("map-note").textContent = `${drawnWords()}, ${by}. What is alike lies near each other; but a plane shows only ${Math.round(100 * drawn.share)} % of what tells examples apart.`;
    const box = h("div", { class: "map", tabindex: "0", role: "application", "aria-roledescription": "map", "aria-label": "Map of the pool. Arrow keys go to the next example that way, Enter opens it.", "aria-describedby": "map-note" });
    const drawPoints = (width) => {
      measure(width);
      const dot = drawn.points.length > 800 ? 2.6 : width < 600 ? 3 : 4;
      const points = drawn.points.map((p, i) => {
        const [x, y] = xy(p.at);
        return s("circle", { class: p.group === null ? "point" : `point s${p.group + 1}`, cx: x.toFixed(1), cy: y.toFixed(1), r: dot, "data-i": `${i}` });
      });
      layer.picks = s("g", { class: "over" });
      layer.here = s("g", { class: "over" });
      const svg = s("svg", { width, height: size.height, viewBox: `0 0 ${width} ${size.height}`, role: "img", "aria-label": `Map of ${drawnWords()}; the same in words stands below.` }, s("g", {}, points), layer.picks, layer.here);
      svg.addEventListener("mousemove", (event) => { if (event.target.dataset.i) goTo(Number(event.target.dataset.i)); });
      svg.addEventListener("click", (event) => {
        const i = nearest(event);
        if (i >= 0) { goTo(i); openRow(drawn.points[i].id); }
      });
      box.replaceChildren(svg);
      drawPicks();
      const at = here;
      here = -1;
      if (at >= 0) goTo(at);
    };
    new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width && box.isConnected && `${width}` !== box.firstChild?.getAttribute("width")) drawPoints(width);
    }).observe(box);
    box.addEventListener("keydown", steer);
    box.addEventListener("focus", () => { if (here < 0) goTo(middle()); });
    const spot = () => h("span", { class: "spot", "aria-hidden": "true" });
    $("map-box").replaceChildren(box, h("ul", { class: "signs", "aria-label": "Signs on the map" },
      drawn.groups.map((name, g) => h("li", { class: `s${g + 1}`, dir: "auto" }, spot(), clip(name, 60) || "(no output)")),
      drawn.groups.length && drawn.points.some((p) => p.group === null) ? h("li", {}, spot(), "other outputs") : null,
      SIDES.map(([cls, word]) => h("li", { class: `side ${cls}` }, sign(), `picks on the ${word}, with their ranks`)), h("li", {}, "✕ the query")));
  };
  const middle = () => drawn.points.reduce((best, p, i) => (Math.hypot(...p.at) < Math.hypot(...drawn.points[best].at) ? i : best), 0);
  const nearest = (event) => {
    if (event.target.dataset.i) return Number(event.target.dataset.i);
    const box = event.currentTarget.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = -1, far = 22;
    drawn.points.forEach((p, i) => {
      const [u, v] = xy(p.at), d = Math.hypot(u - x, v - y);
      if (d < far) { best = i; far = d; }
    });
    return best;
  };
  const goTo = (i) => {
    if (i === here) return;
    here = i;
    const p = drawn.points[i], [x, y] = xy(p.at);
    layer.here.replaceChildren(s("circle", { class: "here", cx: x, cy: y, r: 15 }));
    const by = (answer?.sides ?? []).flatMap((side, n) => (side.picks ?? []).filter((q) => q.id === p.id).map((q) => `${nth(q.rank)} on the ${SIDES[n][1]}`));
    $("map-at").replaceChildren(p.output ? h("b", { dir: "auto" }, clip(p.output, 60)) : "", p.output ? ": " : "", h("span", { dir: "auto" }, p.input), by.length ? ` (${by.join(", ")})` : "");
  };
  const WAYS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const steer = (event) => {
    if (event.key === "Enter" && here >= 0) { event.preventDefault(); openRow(drawn.points[here].id); return; }
    const way = WAYS[event.key];
    if (!way) return;
    event.preventDefault();
    if (here < 0) { goTo(middle()); return; }
    const from = drawn.points[here].at;
    let best = -1, least = Infinity;
    drawn.points.forEach((p, i) => {
      const dx = p.at[0] - from[0], dy = p.at[1] - from[1], along = dx * way[0] + dy * way[1], aside = Math.abs(dx * way[1]) + Math.abs(dy * way[0]);
      if (along > 1e-6 && along >= 0.7 * aside && along + 2 * aside < least) { best = i; least = along + 2 * aside; }
    });
    if (best >= 0) goTo(best);
  };
  const drawPicks = () => {
    if (!drawn?.points.length || !layer.picks) return;
    const threads = [], marks = [], words = [], query = answer?.at ? xy(answer.at) : null;
    (answer?.sides ?? []).forEach((side, n) => (side.picks ?? []).forEach((pick) => {
      if (!pick.at) return;
      const [cls, word] = SIDES[n], [x, y] = xy(pick.at), left = n === 0;
      if (query) threads.push(s("line", { class: `thread ${cls}`, x1: query[0], y1: query[1], x2: x, y2: y }));
      marks.push(s("g", { class: `pick ${cls}`, "data-mark": `${n} ${pick.id}` },
        left ? s("circle", { cx: x, cy: y, r: 9 }) : s("rect", { x: x - 12, y: y - 12, width: 24, height: 24 }),
        s("text", { x: x + (left ? 12 : -14), y: y + (left ? -8 : 18), "text-anchor": left ? "start" : "end" }, `${pick.rank}`)));
      words.push({ word, pick, far: query ? Math.hypot(pick.at[0] - answer.at[0], pick.at[1] - answer.at[1]) : null });
    }));
    if (query) marks.push(s("path", { class: "asked", d: `M${query[0] - 7} ${query[1] - 7}l14 14m0 -14l-14 14` }));
    layer.picks.replaceChildren(...threads, ...marks);
    const counts = drawn.groups.map((name, g) => `${clip(name, 40) || "(none)"} ${number(drawn.points.filter((p) => p.group === g).length)}`);
    $("map-table").replaceChildren(
      words.length ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Picks on the map" }, h("table", {}, h("caption", { hidden: true }, "Picks, and how far they lie from the query on the map"),
        h("thead", {}, h("tr", {}, ["Input", "Output", "Side", "Rank", "Distance on the map"].map((t) => h("th", { scope: "col" }, t)))),
        h("tbody", {}, words.map(({ word, pick, far }) => h("tr", {}, h("th", { scope: "row", class: "wrap", dir: "auto" }, clip(pick.input, 120)), h("td", { class: "wrap", dir: "auto" }, clip(pick.output, 80)),
          h("td", {}, word), h("td", { class: "num" }, `${pick.rank}`), h("td", { class: "num" }, far === null ? "–" : far.toFixed(2)))))))
        : h("p", { class: "soft" }, "Ask a query, and its picks are listed here with their distances from it."),
      h("p", { class: "soft" }, counts.length ? `The commonest outputs on the map: ${counts.join(", ")}.` : "The outputs are too different to be drawn in colors."));
  };
  const light = (n, id, on) => {
    for (const mark of layer.picks?.querySelectorAll("[data-mark]") ?? []) if (mark.dataset.mark === `${n} ${id}`) mark.classList.toggle("lit", on);
    const i = drawn?.points.findIndex((p) => p.id === id) ?? -1;
    if (on && i >= 0) goTo(i);
  };

  // ---- the pool as a table
  const PAGE = 25;
  const table = { start: 0, total: 0 };
  const filters = {};
  const pages = () => Math.max(1, Math.ceil(table.total / PAGE));
  const turn = (to) => { table.start = PAGE * (Math.min(pages(), Math.max(1, to)) - 1); showRows(); };
  const buildTable = () => {
    filters.find = field("Find", h("input", { type: "search", autocomplete: "off", spellcheck: "false", placeholder: "words, in any order" }));
    filters.output = field("Output", h("select", {}, h("option", { value: "" }, "all outputs")));
    filters.task = field("Task", h("select", {}, h("option", { value: "" }, "all tasks")));
    filters.newest = field("Sort", h("select", {}, h("option", { value: "0" }, "oldest first"), h("option", { value: "1" }, "newest first")));
    let timer = 0;
    changed($("filters"), () => { clearTimeout(timer); timer = setTimeout(() => { table.start = 0; showRows(); }, 160); });
    $("filters").replaceChildren(...Object.values(filters));
    if (!about.readOnly) $("filters").append(h("button", { type: "button", class: "quiet", click: () => openRow(null) }, "Add an example"));
    $("heads").replaceChildren(...["Input", "Output", "Task", "Metadata", "Actions"].map((t) => h("th", { scope: "col" }, t)));
    const jump = h("input", { type: "number", min: 1, id: "page" });
    jump.addEventListener("change", () => turn(Number(jump.value) || 1));
    $("pager").replaceChildren(
      h("button", { type: "button", class: "step", id: "back", click: () => turn(table.start / PAGE) }, "← Earlier"),
      h("button", { type: "button", class: "step", id: "next", click: () => turn(table.start / PAGE + 2) }, "Later →"),
      h("label", { class: "soft" }, "Page ", jump), h("span", { class: "soft", id: "pages" }));
  };
  const valueOf = (name) => filters[name].lastElementChild.value;
  const refill = (name, all, values) => {
    const select = filters[name].lastElementChild, now = select.value;
    const options = values.map(([value, n]) => h("option", { value: `=${value}` }, `${clip(value, 40) || "(none)"} (${number(n)})`));
    if (now && !values.some(([value]) => `=${value}` === now)) options.push(h("option", { value: now }, clip(now.slice(1), 40)));
    select.replaceChildren(h("option", { value: "" }, all), ...options);
    select.value = now;
    filters[name].hidden = values.length < 2 && !now;
  };
  const showRows = async () => {
    const asks = new URLSearchParams({ start: table.start, limit: PAGE, newest: valueOf("newest") });
    if (valueOf("find").trim()) asks.set("find", valueOf("find"));
    for (const name of ["output", "task"]) if (valueOf(name)) asks.set(name, valueOf(name).slice(1));
    const found = await latest("rows", () => api(`api/rows?${asks}`));
    if (!found) return;
    table.total = found.total;
    if (table.start && table.start >= found.total) { table.start = PAGE * (pages() - 1); await showRows(); return; }
    refill("output", "all outputs", found.outputs);
    refill("task", "all tasks", found.tasks);
    const tasks = found.tasks.length > 1 || found.tasks.some(([name]) => name), meta = found.rows.some((r) => r.meta.length);
    $("heads").children[2].hidden = !tasks;
    $("heads").children[3].hidden = !meta;
    $("rows").replaceChildren(...found.rows.map((row) => h("tr", {},
      h("th", { scope: "row" }, h("button", { type: "button", class: "link", dir: "auto", click: () => openRow(row.id) }, row.input || "(no text)")),
      h("td", { "data-head": "Output" }, h("span", { class: "clip", dir: "auto" }, row.output || "(waits for a label)")),
      h("td", { "data-head": "Task", hidden: !tasks }, row.task), h("td", { "data-head": "Metadata", hidden: !meta }, row.meta.map(([name, value]) => `${name}: ${value}`).join(" · ")),
      h("td", { class: "acts" }, h("button", { type: "button", class: "small", "aria-label": `Ask with: ${clip(row.input, 80)}`, click: () => askWith(row.id) }, "Ask with it"), " ",
        about.readOnly ? null : h("button", { type: "button", class: "small danger", "aria-label": `Remove: ${clip(row.input, 80)}`, click: () => removeRow(row) }, "Remove")))));
    const last = found.start + found.rows.length;
    $("count").textContent = found.total ? `${number(found.start + 1)}–${number(last)} of ${number(found.total)}${found.total < found.all ? ` found among ${number(found.all)}` : ""}` : found.all ? "no such example" : "the pool is empty";
    $("back").disabled = found.start === 0;
    $("next").disabled = last >= found.total;
    $("page").value = Math.floor(found.start / PAGE) + 1;
    $("page").max = pages();
    $("pages").textContent = `of ${number(pages())}`;
    $("undo-box").replaceChildren(found.undo ? h("button", { type: "button", class: "small", id: "undo", click: undo }, `Undo: ${found.undo}`) : "");
    const name = about.pool.split(/[\\/]/).at(-1);
    $("where").textContent = `${name}: ${count(found.all, "example")}${about.task ? `, chosen from those of task ${about.task}` : ""}${about.readOnly ? ", read-only" : ""}`;
    document.title = `${name} · iclkit view`;
  };
  const afterChange = async () => {
    await showRows();
    drawMap();
    if (answer && inputs().some((x) => x.value.trim())) ask(); // what an LM is asked is asked for anew
  };
  const act = async (work) => {
    trouble(null);
    try { await work(); } catch (error) { trouble(error); }
    await afterChange();
    ($("undo") ?? filters.find.lastElementChild).focus({ preventScroll: true });
  };
  const undo = () => act(() => api("api/undo", {}));
  const removeRow = (row) => act(async () => {
    const was = await rowOf(row.id);
    if (was.mark !== row.mark) throw new Refused("This example was changed after it was listed; it is listed as it is now, and was not removed.");
    await api("api/change", { was, now: null });
  });
  const askWith = async (id) => {
    trouble(null);
    try {
      const row = await rowOf(id);
      setQuery(row.input, row.id);
      $("hero-head").scrollIntoView({ block: "start" });
      inputs()[0].focus({ preventScroll: true });
      await ask();
    } catch (error) { trouble(error); }
  };

  // ---- one example
  const openRow = async (id) => {
    const dialog = $("row"), locked = about.readOnly;
    let was = null;
    trouble(null);
    try { if (id) was = await rowOf(id); } catch (error) {
      dialog.close();
      trouble(error);
      await afterChange(); // what was shown is not there any more
      return;
    }
    const fields = was ? (typeof was.input === "string" ? null : Object.keys(was.input)) : about.fields.length ? about.fields : null;
    const area = (label, value, more = {}) => {
      const node = h("textarea", { dir: "auto", readonly: locked, rows: 2, spellcheck: "false", ...more });
      node.value = value;
      return field(label, node);
    };
    const parts = {
      input: fields ? fields.map((name) => [name, area(name, was ? was.input[name] : "")]) : [[null, area("Input", was ? was.input : "", { rows: 4 })]],
      output: area("Output", was ? was.output : ""),
      task: area("Task", was ? was.task : about.task ?? "", { rows: 1 }),
      choices: area("Choices, one a line", was ? was.choices.join("\n") : "", { rows: Math.min(6, 1 + (was?.choices.length ?? 0)) }),
      meta: area("Metadata (JSON)", JSON.stringify(was ? was.meta : {}, null, 1), { class: "mono", dir: "ltr", rows: Math.min(8, 1 + 2 * Object.keys(was?.meta ?? {}).length) }),
    };
    const said = h("p", { class: "error", role: "alert" });
    const text = (label) => label.lastElementChild.value;
    const read = () => {
      const input = fields ? Object.fromEntries(parts.input.map(([name, label]) => [name, text(label)])) : text(parts.input[0][1]);
      let meta;
      try { meta = JSON.parse(text(parts.meta) || "{}"); } catch (error) { throw new Refused(`The metadata is not JSON: ${error.message}`); }
      return { input, output: text(parts.output), task: text(parts.task), choices: text(parts.choices).split("\n").filter((x) => x.trim()), meta };
    };
    const change = async (make) => {
      said.replaceChildren();
      try {
        await api("api/change", { was, now: make() });
        dialog.close();
        await afterChange();
        ($("undo") ?? filters.find.lastElementChild).focus({ preventScroll: true });
      } catch (error) {
        said.append(error.message, " ");
        if (error.status === 409 && error.now) said.append(h("button", { type: "button", class: "small", click: () => openRow(error.now) }, "Show it as it is now"));
      }
    };
    const form = h("form", { class: "edit", autocomplete: "off" }, parts.input.map(([, label]) => label), parts.output, parts.task, parts.choices, parts.meta, said,
      h("div", { class: "buttons" },
        locked ? h("span", { class: "soft" }, "This pool is read-only.") : h("button", { type: "submit", class: "main" }, was ? "Save" : "Add"),
        was ? h("button", { type: "button", class: "quiet", click: () => { dialog.close(); askWith(was.id); } }, "Ask with it") : null,
        was && !locked ? h("button", { type: "button", class: "quiet danger", click: () => change(() => null) }, "Remove") : null),
      was ? h("p", { class: "soft" }, `Its id is ${was.id}${was.embedded.length ? `; it has vectors of ${was.embedded.join(", ")}` : ""}. With other content it is another example, which stands last; metadata changes in place.`) : null);
    form.addEventListener("submit", (event) => { event.preventDefault(); change(read); });
    const title = was ? (typeof was.input === "string" ? was.input : Object.values(was.input).join(" ")) : "A new example";
    dialog.replaceChildren(h("div", { class: "head" }, h("h2", { id: "row-head", dir: "auto" }, clip(title, 100) || "An example"), h("button", { type: "button", class: "quiet", "data-close": true, click: () => dialog.close() }, "Close")), form);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  };

  // ---- runs
  const showRuns = async () => {
    const found = await latest("runs", () => api("api/runs"));
    if (!found) return;
    const cell = (head, text) => h("td", { "data-head": head }, text);
    $("runs-box").replaceChildren(...[
      found.boards.length ? h("ul", { class: "boards" }, found.boards.map((b) => h("li", {}, h("a", { href: b.path, target: "_blank" }, b.title)))) : null,
      ...found.notes.map((text) => h("p", { class: "note" }, text)),
      found.runs.length ? h("div", { class: "scroll", role: "region", "aria-labelledby": "runs-head", tabindex: "0" }, h("table", { class: "runs" }, h("caption", { hidden: true }, "Recorded runs"),
        h("thead", {}, h("tr", {}, ["What answered", "Task", "Model", "k", "Seed", "Result", "Queries", "Date"].map((t) => h("th", { scope: "col" }, t)))),
        h("tbody", {}, found.runs.map((r) => h("tr", {}, h("th", { scope: "row" }, r.selector), cell("Task", r.task), cell("Model", r.lm ?? "none"), cell("k", `${r.k}`), cell("Seed", `${r.seed}`), cell("Result", r.figure),
          cell("Queries", r.queries < r.of ? `${number(r.queries)} of ${number(r.of)}` : number(r.queries)), cell("Date", r.date)))))) : null,
    ].filter(Boolean));
  };

  // ---- begin
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("ask").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); ask(); } });
  $("any").addEventListener("click", async () => {
    trouble(null);
    try {
      const { total } = await api("api/rows?limit=1");
      if (!total) { $("state").textContent = "The pool is empty."; return; }
      const { rows } = await api(`api/rows?limit=1&start=${Math.floor(Math.random() * total)}`);
      await askWith(rows[0].id);
    } catch (error) { trouble(error); }
  });
  const begin = async () => {
    try { about = await api("api/about"); } catch (error) {
      trouble(error);
      for (const section of document.querySelectorAll("main > section")) section.hidden = true;
      return;
    }
    buildQuestion();
    buildTable();
    inputs()[0].focus({ preventScroll: true });
    await Promise.all([showRows(), drawMap(), showRuns()]);
    document.documentElement.dataset.ready = "1";
  };
  begin();
})();
