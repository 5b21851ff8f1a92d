(() => {
  const { $, h, s, unique, clip, field, changed, copyButton } = shared;
  shared.followTheme();
  const data = JSON.parse($("board").textContent);
  const groups = data.groups;

  const pct = (v, digits = 1) => (v === null ? "–" : (100 * v).toFixed(digits));
  const signed = (v, digits = 1) => {
    if (v === null) return "–";
    const text = (100 * Math.abs(v)).toFixed(digits);
    return (Number(text) === 0 ? "" : v < 0 ? "−" : "+") + text;
  };
  const ends = ([, low, high], show = pct) => `${show(low)} … ${show(high)}`;
  const pText = (p) => (p === null ? "" : p < 0.001 ? "< 0.001" : p < 0.1 ? p.toFixed(3) : p.toFixed(2));
  const money = (x) => (x.cost ? `${x.cost >= 1 ? (1000 * x.cost).toFixed(0) : Number((1000 * x.cost).toPrecision(3))}` : "–"); // of 1,000 queries
  const rankText = ([low, high]) => (low === high ? `${low}` : `${low}–${high}`);
  const VERDICTS = {
    better: ["▲", "better", "better"],
    worse: ["▼", "worse", "worse"],
    "no difference shown": ["○", "no difference shown", "open"],
    baseline: ["◆", "baseline", "base"],
    "not compared": ["–", "not compared", "none"],
    "asks no LM": ["□", "asks no LM", "none"],
  };
  const verdictCell = (line) => {
    const [sign, words, cls] = VERDICTS[line.verdict];
    return h("span", { class: cls }, h("span", { "aria-hidden": "true" }, `${sign} `), words);
  };

  // ---- head
  document.title = data.title ? `${data.title.trim()} · iclkit leaderboard` : "iclkit leaderboard";
  $("question").textContent = `${data.title ? `${data.title.trim()}: does` : "Does"} choosing beat ${data.baseline}, by how much, for what cost?`;
  const whole = (text) => text.replaceAll(" … ", "\u00a0…\u00a0").replaceAll(" %", "\u00a0%"); // figures do not break
  $("answer").textContent = whole(data.headline.answer);
  $("detail").textContent = whole(data.headline.detail);
  $("lm").textContent = whole(data.headline.lm);
  $("legend").append(...data.legend.map((text) => h("li", {}, h("p", {}, text))));

  $("csv").href = URL.createObjectURL(new Blob([data.csv], { type: "text/csv" }));
  $("methods").textContent = data.methods;
  $("copy-methods").replaceWith(copyButton("Copy", () => data.methods));
  const plainTable = (caption, heads, rows) => [h("caption", { hidden: true }, caption), h("thead", {}, h("tr", {}, heads.map((t) => h("th", { scope: "col" }, t)))), h("tbody", {}, rows)];
  $("made").append(...plainTable("Commands", ["Command", "Runs", "iclkit", "Date"], data.made.map((m) => h("tr", {},
    h("th", { scope: "row", class: "wrap" }, m.command ? h("code", {}, m.command) : "not recorded"), h("td", { class: "num" }, `${m.runs}`), h("td", {}, m.version),
    h("td", {}, m.days.length > 1 ? `${m.days[0]} to ${m.days.at(-1)}` : m.days[0] ?? "not recorded")))));
  // ---- all tasks
  data.overall.forEach((one, n) => {
    const name = one.heads.findIndex((_, i) => i === 1), id = `overall-${n}`;
    $("overall").append(h("section", { "aria-labelledby": id }, h("h2", { id }, one.title),
      h("div", { class: "scroll", role: "region", "aria-labelledby": id, tabindex: "0" }, h("table", { class: "cards" },
        plainTable(one.title, one.heads, one.rows.map((row) => h("tr", {}, row.cells.map((text, i) => {
          const [sign, , cls] = VERDICTS[row.verdict], verdict = one.heads[i] === "verdict";
          return h(i === name ? "th" : "td", { scope: i === name ? "row" : null, class: verdict ? cls : null, "data-head": one.heads[i] },
            verdict ? h("span", { "aria-hidden": "true" }, `${sign} `) : null, text);
        })))))),
      h("p", { class: "soft" }, whole(one.notes.join(" ")))));
  });

  // ---- axes
  const nice = (low, high, count) => {
    const raw = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= raw - 1e-12);
    const from = Math.floor(low / step + 1e-9), to = Math.ceil(high / step - 1e-9);
    return Array.from({ length: to - from + 1 }, (_, i) => (from + i) * step);
  };
  const scale = (low, high, from, to) => (v) => from + ((Math.min(Math.max(v, low), high) - low) / (high - low || 1)) * (to - from);
  const known = (list) => list.filter((v) => v !== null && Number.isFinite(v));
  const digitsOf = (ticks) => (ticks.every((t) => Math.abs(100 * t - Math.round(100 * t)) < 1e-6) ? 0 : 1);

  // drawn anew at every width, so that letters keep their size on a phone
  const plot = (label, draw) => {
    const box = h("div", { class: "plot" });
    let last = 0;
    new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (!width || width === last) return;
      last = width;
      const { height, parts } = draw(width);
      box.replaceChildren(s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, parts));
    }).observe(box);
    return box;
  };
  const SHAPES = [
    (x, y) => s("circle", { cx: x, cy: y, r: 4 }),
    (x, y) => s("rect", { x: x - 3.6, y: y - 3.6, width: 7.2, height: 7.2 }),
    (x, y) => s("path", { d: `M${x} ${y - 4.8}l4.6 8h-9.2z` }),
    (x, y) => s("path", { d: `M${x} ${y - 5.2}l5.2 5.2-5.2 5.2-5.2-5.2z` }),
    (x, y) => s("path", { d: `M${x} ${y + 4.8}l4.6 -8h-9.2z` }),
  ];
  const DOT = (x, y) => s("circle", { cx: x, cy: y, r: 2.2 });
  const mark = (shape, x, y, cls, title) => {
    const node = (cls === "small" ? DOT : SHAPES[shape % SHAPES.length])(x, y);
    node.setAttribute("class", cls);
    if (title) node.append(s("title", {}, title));
    return node;
  };
  const MARKS = { better: [2, "better-mark"], worse: [4, "worse-mark"], baseline: [3, "dot"] };
  const interval = (x, y, [value, low, high], verdict, title) => {
    const [shape, cls] = MARKS[verdict] ?? [0, "hollow"];
    return [s("line", { class: "band", x1: x(low ?? value), x2: x(high ?? value), y1: y, y2: y }), mark(shape, x(value), y, cls, title)];
  };
  // labels at the right of a plot, pushed apart so that none covers another
  const spread = (labels, top, bottom, gap = 14) => {
    labels.sort((a, b) => a.y - b.y);
    labels.forEach((label, i) => { label.at = Math.max(label.y, top, i ? labels[i - 1].at + gap : top); });
    for (let i = labels.length - 1, room = bottom; i >= 0; i--, room -= gap) {
      if (labels[i].at > room) labels[i].at = room;
      else room = labels[i].at;
    }
    return labels;
  };

  // ---- all results
  const several = (key) => unique(groups.map((g) => g[key])).length > 1;
  const lines = groups.flatMap((group, g) => group.lines.map((line, l) => ({ ...line, group, g, l })));
  const figures = known(lines.flatMap((x) => x.figure));
  const figureTicks = nice(Math.min(...figures), Math.max(...figures), 4);
  const reach = Math.max(0.01, ...known(lines.flatMap((x) => x.diff ?? [])).map(Math.abs));
  const diffEnd = nice(0, reach, 4).at(-1);
  const WIDE = 80;
  const smallInterval = (figure, low, high, verdict, zero) => {
    const x = scale(low, high, 6, WIDE - 6);
    return s("svg", { width: WIDE, height: 16, "aria-hidden": "true" },
      s("line", { class: "grid", x1: 6, x2: WIDE - 6, y1: 8, y2: 8 }),
      zero ? s("line", { class: "axis", x1: x(0), x2: x(0), y1: 0, y2: 16 }) : null,
      interval(x, 8, figure, verdict));
  };
  const ORDER = Object.keys(VERDICTS);
  const columns = [
    { key: "selector", head: "Selector", by: (x) => x.name.toLowerCase(), cell: (x) => h("th", { scope: "row" }, h("a", { href: `#group-${x.g}` }, x.name)) },
    { key: "task", head: "Task", show: several("task"), by: (x) => x.group.task.toLowerCase(), cell: (x) => h("td", {}, x.group.tag ? `${x.group.task} (${x.group.tag})` : x.group.task) },
    { key: "lm", head: "Model", show: several("lm"), by: (x) => x.group.lm.toLowerCase(), cell: (x) => h("td", {}, x.group.lm) },
    { key: "k", head: "k", show: several("k"), num: true, by: (x) => x.group.k, cell: (x) => h("td", { class: "num" }, `${x.group.k}`) },
    { key: "n", head: "n", num: true, by: (x) => x.group.queries, cell: (x) => h("td", { class: "num" }, x.group.queries.toLocaleString("en")) },
    { key: "score", head: unique(groups.map((g) => g.metric)).length === 1 ? groups[0].metric : "score", note: `${pct(figureTicks[0], 0)} to ${pct(figureTicks.at(-1), 0)} %`,
      down: true, by: (x) => x.figure[0], cell: (x) => h("td", {}, smallInterval(x.figure, figureTicks[0], figureTicks.at(-1), "plain"), `${pct(x.figure[0])} `, h("span", { class: "ends" }, ends(x.figure))) },
    { key: "diff", head: `vs ${data.baseline}`, note: `−${pct(diffEnd, 0)} to +${pct(diffEnd, 0)} points`, down: true, by: (x) => (x.diff ? x.diff[0] : null),
      cell: (x) => (x.diff ? h("td", {}, smallInterval(x.diff, -diffEnd, diffEnd, x.verdict, true), `${signed(x.diff[0])} `, h("span", { class: "ends" }, ends(x.diff, signed))) : h("td", {}, "")) },
    { key: "verdict", head: "Verdict", by: (x) => ORDER.indexOf(x.verdict), cell: (x) => h("td", {}, verdictCell(x)) },
    { key: "p", head: "p", num: true, by: (x) => x.p, cell: (x) => h("td", { class: "num" }, pText(x.p)) },
    { key: "tokens", head: "Tokens", num: true, by: (x) => x.tokens, cell: (x) => h("td", { class: "num" }, Math.round(x.tokens).toLocaleString("en")) },
    { key: "cost", head: "Cost / 1,000", show: lines.some((x) => x.cost), num: true, by: (x) => x.cost, cell: (x) => h("td", { class: "num" }, money(x)) },
    { key: "rank", head: "Ranks", num: true, by: (x) => x.ranks[0] + x.ranks[1] / 1e4, cell: (x) => h("td", { class: "num" }, rankText(x.ranks)) },
  ].filter((c) => c.show !== false);
  const body = h("tbody");
  const sorting = { column: null, up: true };
  const chooser = (label, values, all) => field(label, h("select", {}, h("option", { value: "" }, all), values.map((v) => h("option", { value: v }, `${v}`))));
  const filters = {
    text: field("Find a selector", h("input", { type: "search", placeholder: "e.g. knn", autocomplete: "off", spellcheck: "false" })),
    task: !several("task") ? null : chooser("Task", unique(groups.map((g) => g.task)), "all tasks"),
    lm: several("lm") ? chooser("Model", unique(groups.map((g) => g.lm)), "all models") : null,
    k: several("k") ? chooser("k", unique(groups.map((g) => g.k)).sort((a, b) => a - b), "every k") : null,
    sort: field("Sort by", h("select", {}, h("option", { value: "" }, "as printed"), columns.map((c) => h("option", { value: c.key }, c.head)))),
    verdict: chooser("Verdict", ORDER.filter((v) => lines.some((x) => x.verdict === v)), "all verdicts"),
  };
  const valueOf = (name) => filters[name]?.lastElementChild.value ?? "";
  const clear = h("button", { type: "button", class: "quiet", click: () => {
    for (const f of Object.values(filters)) if (f) f.lastElementChild.value = "";
    showLines();
  } }, "Show all");
  $("filters").append(...Object.values(filters).filter(Boolean), clear);
  filters.sort.className = "narrow";
  filters.sort.lastElementChild.addEventListener("change", () => {
    sorting.column = columns.find((c) => c.key === valueOf("sort")) ?? null;
    sorting.up = !sorting.column?.down;
  });
  changed($("filters"), () => showLines());
  const heads = columns.map((column) => {
    const button = h("button", { type: "button", click: () => {
      const first = !column.down;
      sorting.up = sorting.column === column ? !sorting.up : first;
      sorting.column = column;
      for (const [i, th] of heads.entries()) th.setAttribute("aria-sort", columns[i] === column ? (sorting.up ? "ascending" : "descending") : "none");
      showLines();
    } }, column.head);
    return h("th", { scope: "col", class: column.num ? "num" : null, "aria-sort": "none" }, button, column.note ? h("div", { class: "soft" }, column.note) : null);
  });
  $("board-table").append(h("caption", { hidden: true }, "Every selector on every task and k"), h("thead", {}, h("tr", {}, heads)), body);
  for (const line of lines) line.row = h("tr", {}, columns.map((c) => {
    const cell = c.cell(line);
    cell.dataset.column = c.key;
    cell.dataset.head = c.head;
    return cell;
  }));
  function showLines() {
    const text = valueOf("text").trim().toLowerCase();
    const shown = lines.filter((x) => (!text || x.name.toLowerCase().includes(text)) && (!valueOf("task") || x.group.task === valueOf("task")) &&
      (!valueOf("lm") || x.group.lm === valueOf("lm")) && (!valueOf("k") || `${x.group.k}` === valueOf("k")) && (!valueOf("verdict") || x.verdict === valueOf("verdict")));
    if (sorting.column) {
      const { by } = sorting.column, sign = sorting.up ? 1 : -1;
      shown.sort((a, b) => {
        const [u, v] = [by(a), by(b)];
        if (u === null || v === null) return (u === null) - (v === null); // what has no value stands last either way
        return u < v ? -sign : u > v ? sign : 0;
      });
    }
    body.replaceChildren(...shown.map((x) => x.row));
    $("count").textContent = shown.length === lines.length ? `${lines.length} results` : `${shown.length} of ${lines.length} results`;
  }
  showLines();

  // ---- figures of a task
  const forest = (group) => {
    const rows = group.lines.filter((x) => x.diff);
    if (!rows.length) return null;
    const all = known(rows.flatMap((x) => x.diff)), ticks = nice(Math.min(0, ...all), Math.max(0, ...all), 5), digits = digitsOf(ticks);
    const label = `Differences to ${data.baseline} in points, ${group.title}: ` + rows.map((x) => `${x.name} ${signed(x.diff[0])} (${ends(x.diff, signed)}), ${x.verdict}`).join("; ");
    const sorted = [...rows].sort((a, b) => b.diff[0] - a.diff[0]);
    const box = plot(label, (width) => {
      const narrow = width < 560, names = narrow ? 0 : Math.min(250, 30 + 7 * Math.max(...sorted.map((x) => x.name.length)));
      const step = narrow ? 38 : 24, numbers = narrow ? 0 : 215, top = 6, bottom = top + step * sorted.length;
      const x = scale(ticks[0], ticks.at(-1), names + 8, width - numbers - 8);
      return { height: bottom + 36, parts: [
        ticks.map((t) => s("line", { class: Math.abs(t) < 1e-9 ? "axis" : "grid", x1: x(t), x2: x(t), y1: top, y2: bottom })),
        ticks.map((t) => s("text", { class: "faint", x: x(t), y: bottom + 16, "text-anchor": "middle" }, Math.abs(t) < 1e-9 ? "0" : signed(t, digits))),
        s("text", { class: "faint", x: (x(ticks[0]) + x(ticks.at(-1))) / 2, y: bottom + 32, "text-anchor": "middle" }, `points of ${group.metric}, difference to ${data.baseline}`),
        sorted.map((line, i) => {
          const y = top + step * i + (narrow ? 26 : step / 2), text = `${signed(line.diff[0])} (${ends(line.diff, signed)})`;
          return [
            s("text", { x: narrow ? 0 : names, y: narrow ? y - 12 : y + 4, "text-anchor": narrow ? "start" : "end" }, clip(line.name, Math.floor((narrow ? width - 160 : names) / 7)), s("title", {}, line.name)),
            s("text", { class: "faint", x: width, y: narrow ? y - 12 : y + 4, "text-anchor": "end", dx: narrow ? 0 : -52 }, text),
            narrow || !MARKS[line.verdict] ? null : s("text", { class: line.verdict, x: width - 46, y: y + 4 }, line.verdict),
            interval(x, y, line.diff, line.verdict, `${line.name}: ${text}, ${line.verdict}`),
          ];
        }),
      ] };
    });
    return h("figure", {}, h("h4", {}, `Differences to ${data.baseline}`), box,
      h("figcaption", {}, "▲ better, ▼ worse, ○ no difference shown, each with its 95 % interval; the upright line is no difference."));
  };

  // the same figure for a part of the queries
  const parts = (group) => {
    const box = h("div", {}, forest(group) ?? "");
    if (!group.slices.length) return box;
    const kinds = unique(group.slices.map((x) => x.kind)), note = h("p", { class: "soft", role: "status" });
    const select = h("select", {}, h("option", { value: "" }, `all ${group.queries} queries`), kinds.map((kind) => h("optgroup", { label: kind },
      group.slices.map((x, i) => (x.kind === kind ? h("option", { value: i }, `${x.value} (${x.queries})`) : null)).filter(Boolean))));
    select.addEventListener("change", () => {
      const part = group.slices[select.value];
      const few = part && !part.lines.some((x) => x.diff);
      box.replaceChildren(part ? few ? partTable(group, part) : forest({ ...group, lines: part.lines }) ?? "" : forest(group) ?? "");
      note.textContent = !part ? "" : few ? `${part.queries} queries: too few for a comparison.`
        : `${part.queries} queries with ${part.kind} ${part.value}. Verdicts are by q-values over all parts of this table; that a part differs from the others is not tested.`;
    });
    return h("div", {}, h("div", { class: "controls" }, field("Queries", select)), note, box);
  };
  const partTable = (group, part) => h("div", { class: "scroll" }, h("table", {}, plainTable(`${part.kind} ${part.value}`, ["Selector", group.metric], part.lines.map((x) => h("tr", {},
    h("th", { scope: "row" }, x.name), h("td", {}, `${pct(x.figure[0])} `, h("span", { class: "ends" }, ends(x.figure))))))));

  // the same series wears the same colour and shape everywhere; s0 is the baseline, s8 zero, then the best at the largest k
  const dressed = (family) => {
    const found = new Map();
    for (const group of family) for (const line of group.lines) {
      const key = line.series.join(" ");
      if (!found.has(key)) found.set(key, { name: line.name, base: line.verdict === "baseline", points: [] });
      found.get(key).points.push({ k: group.k, figure: line.figure, tokens: line.tokens, line });
    }
    const list = [...found.values()].sort((a, b) => b.base - a.base || b.points.at(-1).figure[0] - a.points.at(-1).figure[0]);
    const zero = list.find((x) => x.name === "zero"), others = list.filter((x) => !x.base && x !== zero);
    const named = list.length > 9 ? 6 : 8; // the lines that a reader can still tell apart
    list.forEach((series) => { series.style = null; });
    others.slice(0, zero ? Math.min(named, 7) : named).forEach((series, i) => { series.style = i + 1; });
    if (zero) zero.style = 8;
    if (list[0].base) list[0].style = 0;
    return list;
  };
  const valueAxis = (y, ticks, left, right, digits) => ticks.map((t) => [
    s("line", { class: "grid", x1: left, x2: right, y1: y(t), y2: y(t) }),
    s("text", { class: "faint", x: left - 6, y: y(t) + 4, "text-anchor": "end" }, pct(t, digits)),
  ]);

  const curves = (family, list) => {
    const ks = unique(family.map((g) => g.k)).sort((a, b) => a - b);
    if (ks.length < 2) return null;
    const values = known(list.flatMap((x) => x.points.flatMap((p) => p.figure))), ticks = nice(Math.min(...values), Math.max(...values), 5), digits = digitsOf(ticks);
    const label = `${family[0].metric} by number of demonstrations. ` + list.map((x) => `${x.name}: ${x.points.map((p) => `k ${p.k}, ${pct(p.figure[0])} %`).join("; ")}`).join(". ");
    const box = plot(label, (width) => {
      const named = list.filter((x) => x.style !== null), right = width - Math.min(width * 0.36, 16 + 7 * Math.max(...named.map((x) => x.name.length)));
      const left = 34, top = 8, bottom = 260, y = scale(ticks[0], ticks.at(-1), bottom, top);
      const place = (k) => Math.log2(k + 1), x0 = scale(place(ks[0]), place(ks.at(-1)), left + 14, right - 16);
      const shift = (series) => (series.style === null ? 0 : (series.style - 4) * Math.min(2, (right - left) / 260)), x = (k, series) => x0(place(k)) + shift(series);
      const last = (series) => series.points.at(-1);
      const labels = spread(named.map((series) => ({ series, y: y(last(series).figure[0]) })), top + 4, bottom);
      return { height: bottom + 38, parts: [
        valueAxis(y, ticks, left, right, digits),
        ks.map((k) => s("text", { class: "faint", x: x0(place(k)), y: bottom + 17, "text-anchor": "middle" }, `${k}`)),
        s("text", { class: "faint", x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, "demonstrations (k)"),
        list.map((series) => {
          const path = series.points.map((p, i) => `${i ? "L" : "M"}${x(p.k, series)} ${y(p.figure[0])}`).join("");
          if (series.style === null) return s("path", { class: "muted", d: path }, s("title", {}, series.name));
          const cls = `s${series.style}`;
          return s("g", { class: cls }, s("path", { class: "series", d: path, "stroke-dasharray": series.base ? "6 4" : null }),
            series.points.map((p) => [
              s("line", { class: "whisker", x1: x(p.k, series), x2: x(p.k, series), y1: y(p.figure[1]), y2: y(p.figure[2]) }),
              mark(series.style, x(p.k, series), y(p.figure[0]), "mark", `${series.name}, k = ${p.k}: ${pct(p.figure[0])} % (${ends(p.figure)})`),
            ]));
        }),
        labels.map(({ series, at, y: from }) => s("g", { class: `s${series.style}` },
          s("path", { class: "whisker", fill: "none", d: `M${x(ks.at(-1), series) + 6} ${from}L${right - 4} ${at}` }),
          s("text", { class: "label", x: right, y: at + 4 }, clip(series.name, Math.floor((width - right) / 6.6)), s("title", {}, series.name)))),
      ] };
    });
    const rest = list.length - list.filter((x) => x.style !== null).length;
    return h("figure", {}, h("h4", {}, "More demonstrations"), box, h("figcaption", {}, `${family[0].metric} in per cent; upright lines are 95 % intervals, ${data.baseline} is dashed.` +
      (rest ? ` ${rest} further selectors are thin grey lines; all figures are in the table above.` : "")));
  };

  const costs = (family, list) => {
    const rules = list.filter((x) => !x.points[0].line.lm), rule = rules.length ? rules.reduce((a, b) => (b.points[0].figure[0] > a.points[0].figure[0] ? b : a)) : null;
    const points = list.filter((x) => !rules.includes(x)).flatMap((series) => series.points.map((p) => ({ ...p, series })));
    const shown = points.filter((p, i) => points.findIndex((q) => q.series === p.series && q.tokens === p.tokens && q.figure[0] === p.figure[0]) === i);
    if (unique(shown.map((p) => Math.round(p.tokens))).length < 2) return null;
    const byCost = [...shown].sort((a, b) => Math.round(a.tokens) - Math.round(b.tokens) || b.figure[0] - a.figure[0]);
    const front = byCost.filter((p, i) => byCost.slice(0, i).every((q) => q.figure[0] < p.figure[0]));
    const called = (p) => (p.tokens && family.length > 1 && p.line.series[0] !== "zero" ? `${p.series.name}, k = ${p.k}` : p.series.name);
    const told = front.map((p) => `${called(p)} (${Math.round(p.tokens)} tokens, ${p.line.cost ? `${money(p.line)} per 1,000 queries, ` : ""}${pct(p.figure[0])} %)`).join("; ");
    const values = known([...shown.flatMap((p) => p.figure), ...(rule ? [rule.points[0].figure[0]] : [])]), ticks = nice(Math.min(...values), Math.max(...values), 5), digits = digitsOf(ticks);
    const most = Math.max(...shown.map((p) => p.tokens)), least = Math.max(1, Math.min(...shown.map((p) => p.tokens))), log = most / least > 6;
    const label = `${family[0].metric} against prompt tokens per query. Nothing is both cheaper and better than: ${told}.`;
    const box = plot(label, (width) => {
      const left = 34, right = width - 12, top = 8, bottom = 260, y = scale(ticks[0], ticks.at(-1), bottom, top);
      const grow = log ? Math.log2 : (v) => v, marksAt = log ? Array.from({ length: 20 }, (_, i) => 2 ** i).filter((t) => t >= least / 1.3 && t <= most * 1.3) : nice(least, most, 5);
      const [from, to] = [Math.min(least, ...marksAt), Math.max(most, ...marksAt)], x0 = scale(grow(from), grow(to), left + 14, right - 12), x = (v) => x0(grow(Math.max(v, 1)));
      const steps = front.map((p, i) => (i ? `H${x(p.tokens)}V${y(p.figure[0])}` : `M${x(p.tokens)} ${y(p.figure[0])}`)).join("");
      const taken = shown.map((p) => ({ x1: x(p.tokens) - 6, w: 12, at: y(p.figure[0]) + 4, own: p }));
      const place = (p) => { // a label above or below its mark, where it covers no other label
        const text = called(p), w = 6.6 * text.length;
        for (const dy of [-9, 21, -23, 35]) {
          const end = x(p.tokens) + w / 2 > right ? "end" : x(p.tokens) - w / 2 < left ? "start" : "middle";
          const x1 = end === "end" ? x(p.tokens) - w : end === "start" ? x(p.tokens) : x(p.tokens) - w / 2, at = y(p.figure[0]) + dy;
          if (at > top + 8 && at < bottom - 2 && taken.every((b) => b.own === p || Math.abs(b.at - at) > 13 || b.x1 > x1 + w || b.x1 + b.w < x1)) {
            taken.push({ x1, w, at });
            return s("text", { class: p.series.style === null ? null : "label", x: x(p.tokens), y: at, "text-anchor": end }, text);
          }
        }
        return null;
      };
      const worth = [...front, ...shown.filter((p) => p.series.base && p.k === p.series.points.at(-1).k && !front.includes(p))];
      return { height: bottom + 38, parts: [
        valueAxis(y, ticks, left, right, digits),
        marksAt.map((t) => s("text", { class: "faint", x: x(t), y: bottom + 17, "text-anchor": "middle" }, t.toLocaleString("en"))),
        s("text", { class: "faint", x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, `prompt tokens per query${log ? ", doubling" : ""}`),
        s("path", { class: "front", d: steps }),
        rule ? s("line", { class: "zero", x1: left, x2: right, y1: y(rule.points[0].figure[0]), y2: y(rule.points[0].figure[0]) }) : null,
        rule ? s("text", { class: "faint", x: left + 4, y: y(rule.points[0].figure[0]) + (y(rule.points[0].figure[0]) < top + 20 ? 15 : -5) }, `${rule.name}: asks no LM`) : null,
        shown.map((p) => s("g", { class: p.series.style === null ? null : `s${p.series.style}` },
          mark(p.series.style ?? 0, x(p.tokens), y(p.figure[0]), p.series.style === null ? "small" : "mark", `${called(p)}: ${pct(p.figure[0])} % (${ends(p.figure)}), ${Math.round(p.tokens)} tokens${p.line.cost ? `, ${money(p.line)} per 1,000 queries` : ""}`))),
        worth.map((p) => s("line", { class: "whisker soft-line", x1: x(p.tokens), x2: x(p.tokens), y1: y(p.figure[1] ?? p.figure[0]), y2: y(p.figure[2] ?? p.figure[0]) })),
        worth.map((p) => s("g", { class: p.series.style === null ? null : `s${p.series.style}` }, place(p))),
      ] };
    });
    const ks = unique(shown.map((p) => p.k)).sort((a, b) => a - b).filter(Boolean), plain = list.filter((x) => x.style === null && !rules.includes(x));
    const key = h("ul", { class: "marks" }, list.filter((x) => x.style !== null && !rules.includes(x)).map((x) => h("li", {},
      s("svg", { width: 16, height: 14, "aria-hidden": "true" }, s("g", { class: `s${x.style}` }, mark(x.style, 8, 7, "mark"))), x.name)),
      plain.length ? h("li", {}, s("svg", { width: 16, height: 14, "aria-hidden": "true" }, mark(0, 8, 7, "small")), plain.map((x) => x.name).join(", ")) : null);
    const several = ks.length > 1 ? ` A selector has a mark for each k (${ks.join(", ")}), more demonstrations further right.` : "";
    return h("figure", {}, h("h4", {}, "What it costs"), box, key, h("figcaption", {}, `${rule ? "Among what asks the LM, nothing" : "Nothing"} is both cheaper and better than: ${told}. Upright lines are the 95 % intervals of the named ones.${several}`));
  };

  // ---- single queries
  const opened = new Map();
  const unpack = (id) => {
    if (!opened.has(id)) {
      const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
      opened.set(id, new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json());
    }
    return opened.get(id);
  };
  const mean = (runs, q) => runs.reduce((sum, run) => sum + (run.value[q] ?? 0), 0) / runs.length;
  const judged = (value) => (value === 1 ? "✓ right" : value === 0 ? "✗ wrong" : `${pct(value, 0)} %`);
  const judgedAll = (runs, q) => { // several seeds that differ are counted
    const values = runs.map((run) => run.value[q]), right = values.filter((v) => v === 1).length;
    return right && values.every((v) => v === 0 || v === 1) && right < values.length ? `${right} of ${values.length} right` : judged(mean(runs, q));
  };
  const textOf = (sheet, q) => {
    const pieces = sheet.queries[q];
    return pieces ? pieces.filter(([kind]) => kind === "query").map(([, text]) => text).join(" ") : sheet.queryIds[q];
  };
  const PAGE = 25;

  const drill = (group, g) => {
    const box = h("details", { class: "drill" }, h("summary", {}, "Look at single queries"));
    box.addEventListener("toggle", async () => {
      if (!box.open || box.dataset.ready) return;
      box.dataset.ready = "1";
      const note = h("p", { class: "soft", role: "status" }, "Unpacking …");
      box.append(note);
      try {
        const rows = await unpack(`rows-${g}`), sheet = await unpack(`sheet-${rows.sheet}`);
        note.replaceWith(browse(group, g, rows, sheet));
      } catch (error) {
        note.textContent = `The rows could not be unpacked (${error.message}); this needs a browser of 2023 or later.`;
      }
    });
    return box;
  };

  const browse = (group, g, rows, sheet) => {
    const pick = (label, chosen) => field(label, h("select", {}, group.lines.map((x, i) => h("option", { value: i, selected: i === chosen }, x.name))));
    const base = Math.max(0, group.lines.findIndex((x) => x.verdict === "baseline"));
    const one = pick("Selector", base === 0 && group.lines.length > 1 ? 1 : 0), two = pick("beside", base);
    const which = field("Show", h("select", {}, [["all", "all queries"], ["gain", "first is better"], ["loss", "second is better"], ["bad", "both wrong"]]
      .map(([value, text]) => h("option", { value }, text))));
    const find = field("Find in the query", h("input", { type: "search", autocomplete: "off", spellcheck: "false" }));
    const table = h("table", { class: "queries" }), count = h("span", { class: "soft", role: "status" });
    const back = h("button", { type: "button", class: "step" }, "← Earlier"), next = h("button", { type: "button", class: "step" }, "Later →");
    const texts = rows.queries.map((q) => textOf(sheet, q));
    const state = { page: 0, found: [] };
    const at = (control) => Number(control.lastElementChild.value);
    const select = () => {
      const [a, b] = [rows.lines[at(one)], rows.lines[at(two)]], text = find.lastElementChild.value.trim().toLowerCase(), mode = which.lastElementChild.value;
      state.found = rows.queries.map((_, q) => q).filter((q) => {
        if (text && !texts[q].toLowerCase().includes(text)) return false;
        const [u, v] = [mean(a, q), mean(b, q)];
        return mode === "all" || (mode === "gain" && u > v) || (mode === "loss" && u < v) || (mode === "bad" && u === 0 && v === 0);
      });
      state.page = 0;
      draw();
    };
    const answer = (runs, q) => {
      const said = unique(runs.map((run) => rows.answers[run.output[q]]));
      return h("td", {}, judgedAll(runs, q), h("div", { class: "soft" }, clip(said.join(" / "), 90) || "(no answer)"));
    };
    const draw = () => {
      const [a, b] = [at(one), at(two)], pages = Math.max(1, Math.ceil(state.found.length / PAGE));
      const part = state.found.slice(state.page * PAGE, (state.page + 1) * PAGE);
      table.replaceChildren(
        h("thead", {}, h("tr", {}, ["Query", "Expected", group.lines[a].name, ...(a === b ? [] : [group.lines[b].name])].map((t) => h("th", { scope: "col" }, t)))),
        h("tbody", {}, part.map((q) => h("tr", {},
          h("th", { scope: "row" }, h("button", { type: "button", class: "link", click: () => openQuery(group, rows, sheet, state.found, q, a) }, clip(texts[q], 160))),
          h("td", {}, clip(rows.answers[rows.gold[q]], 90)), answer(rows.lines[a], q), a === b ? null : answer(rows.lines[b], q)))));
      count.textContent = state.found.length ? `${state.page * PAGE + 1}–${state.page * PAGE + part.length} of ${state.found.length.toLocaleString("en")}` : "no such query";
      back.disabled = state.page === 0;
      next.disabled = state.page >= pages - 1;
    };
    back.addEventListener("click", () => { state.page -= 1; draw(); });
    next.addEventListener("click", () => { state.page += 1; draw(); });
    for (const control of [one, two, which, find]) changed(control, select);
    select();
    const sampled = rows.queries.length < group.queries ? h("p", { class: "soft" }, `${rows.queries.length.toLocaleString("en")} of ${group.queries.toLocaleString("en")} queries are kept in this page, evenly spaced; the runs have them all.`) : null;
    return h("div", {}, sampled, h("div", { class: "controls" }, one, two, which, find), h("div", { class: "pager" }, back, next, count),
      h("div", { class: "scroll", role: "region", "aria-label": `Queries of ${group.title}`, tabindex: "0" }, table));
  };

  const openQuery = (group, rows, sheet, found, first, line) => {
    const dialog = $("query");
    const state = { q: first, line, run: 0 };
    const show = () => {
      const q = state.q, run = rows.lines[state.line][state.run], query = rows.queries[q], place = found.indexOf(q);
      const opener = (label, values, now, change) => field(label, h("select", { change: (event) => { change(Number(event.target.value)); show(); keep(label); } },
        values.map((text, i) => h("option", { value: i, selected: i === now }, text))));
      const keep = (label) => [...dialog.querySelectorAll("label")].find((x) => x.firstChild.textContent === label)?.lastElementChild.focus();
      const step = (by, text) => h("button", { type: "button", class: "step", disabled: found[place + by] === undefined, "data-step": by,
        click: () => { state.q = found[place + by]; show(); (dialog.querySelector(`[data-step="${by}"]:enabled`) ?? dialog.querySelector("[data-close]")).focus(); } }, text);
      const value = run.value[q], chance = run.chance[q], note = run.notes[q];
      const facts = [
        ["Expected", rows.answers[rows.gold[q]]], ["Answered", rows.answers[run.output[q]] || "(no answer)"],
        ["Judged", value === null ? "–" : `${judged(value)} (${group.metric})`],
        chance === null ? null : ["Chance of the expected answer", `${pct(chance)} % among the labels`],
        ["Prompt", `${run.tokens[q].toLocaleString("en")} tokens, ${run.shown[q].length} demonstration${run.shown[q].length === 1 ? "" : "s"}` + (run.dropped[q] ? `; ${run.dropped[q]} dropped for the budget` : "")],
        note >= 0 ? ["Note", rows.answers[note]] : null, ["Query", sheet.queryIds[query]], ["Run", run.id],
      ].filter(Boolean);
      dialog.replaceChildren(
        h("div", { class: "head" }, h("h2", { id: "query-head" }, clip(textOf(sheet, query), 140)), h("button", { type: "button", class: "quiet", "data-close": true, click: () => dialog.close() }, "Close")),
        h("div", { class: "controls" }, opener("Selector", group.lines.map((x) => x.name), state.line, (i) => { state.line = i; state.run = 0; }),
          rows.lines[state.line].length > 1 ? opener("Seed", rows.lines[state.line].map((x) => `${x.seed}`), state.run, (i) => { state.run = i; }) : null,
          h("div", { class: "pager" }, step(-1, "← Earlier"), step(1, "Later →"))),
        h("dl", {}, facts.map(([name, text]) => [h("dt", {}, name), h("dd", {}, text)])),
        h("div", { class: "head" }, h("h3", { id: "prompt-head" }, "The prompt as it was read"), copyButton("Copy the prompt", () => promptText(sheet, run.shown[q], query), dialog)),
        h("p", { class: "soft key" }, "Numbered: ", h("span", { class: "demo" }, "a demonstration"), ", its ", h("span", { class: "output" }, "answer"), "; ", h("span", { class: "asked" }, "the query"), ". Grey: the template's own words."),
        prompt(sheet, run.shown[q], query),
        run.shown[q].length ? h("details", {}, h("summary", {}, "Demonstrations: rank and score"), shots(sheet, run, q)) : null);
    };
    show();
    dialog.showModal();
    dialog.scrollTop = 0;
  };
  const piecesOf = (pieces) => pieces.map(([kind, text]) => h("span", { class: kind }, text));
  const prompt = (sheet, shown, query) => {
    const missing = (id) => h("span", { class: "missing" }, `[${id}: its text was not given to this page]`);
    const role = (name) => (sheet.chat ? h("span", { class: "role" }, `${name}\n`) : null);
    const turns = (pieces) => { // a chat shows a demonstration as two turns
      const cut = pieces.findIndex(([kind]) => kind === "output");
      return sheet.chat ? [role("user"), piecesOf(pieces.slice(0, cut)), "\n", role("assistant"), piecesOf(pieces.slice(cut))] : piecesOf(pieces);
    };
    const blocks = [
      sheet.opening ? h("span", { class: "opening" }, role("system"), sheet.opening) : null,
      ...shown.map((d) => h("span", { class: "demo" }, sheet.demos[d] ? turns(sheet.demos[d]) : missing(sheet.demoIds[d]))),
      h("span", { class: "asked" }, role("user"), sheet.queries[query] ? piecesOf(sheet.queries[query]) : missing(sheet.queryIds[query])),
    ].filter(Boolean);
    return h("pre", { tabindex: "0", "aria-labelledby": "prompt-head" }, blocks.flatMap((block, i) => (i ? [sheet.opening && i === 1 ? sheet.separator : sheet.demoSeparator, block] : [block])));
  };
  const promptText = (sheet, shown, query) => {
    const said = (pieces, missing) => (pieces ? pieces.map(([, text]) => text).join("") : `[${missing}]`);
    return [sheet.opening, ...shown.map((d) => said(sheet.demos[d], sheet.demoIds[d])), said(sheet.queries[query], sheet.queryIds[query])].filter(Boolean).join(sheet.separator);
  };
  const shots = (sheet, run, q) => h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ["Position", "Example", "Rank", "Score", "Answer"].map((t, i) => h("th", { scope: "col", class: i === 0 || i === 2 || i === 3 ? "num" : null }, t)))),
    h("tbody", {}, run.shown[q].map((d, i) => h("tr", {},
      h("th", { scope: "row", class: "num" }, `${i + 1}`), h("td", {}, sheet.demoIds[d]), h("td", { class: "num" }, `${run.rank[q][i] || "–"}`),
      h("td", { class: "num" }, `${run.score[q][i] ?? "–"}`), h("td", { class: "wrap" }, sheet.demos[d]?.find(([kind]) => kind === "output")?.[1] ?? "–"))))));

  // ---- a section per task
  const tasks = unique(groups.map((g) => g.task));
  tasks.forEach((task, t) => {
    const mine = groups.filter((g) => g.task === task), section = h("section", { "aria-labelledby": `task-${t}` }, h("h2", { id: `task-${t}` }, task));
    for (const key of unique(mine.map((g) => JSON.stringify([g.lm, g.tag])))) {
      const [lm, tag] = JSON.parse(key), family = mine.filter((g) => g.lm === lm && g.tag === tag), list = dressed(family);
      section.append(h("p", { class: "soft" }, `Model: ${lm}${tag ? ` · ${tag}` : ""}`));
      const drawn = [curves(family, list), costs(family, list)].filter(Boolean);
      if (drawn.length) section.append(h("div", { class: "figures" }, drawn));
      for (const group of family) {
        const g = groups.indexOf(group);
        section.append(h("h3", { id: `group-${g}`, tabindex: "-1" }, group.k ? `With ${group.k} demonstration${group.k === 1 ? "" : "s"}` : "Without demonstrations"), h("p", {}, whole(group.words)),
          parts(group), h("details", {}, h("summary", {}, "Notes"), h("ul", { class: "notes" }, group.notes.map((text) => h("li", {}, text)))), drill(group, g));
      }
    }
    $("tasks").append(section);
  });
  if (tasks.length > 1) $("contents").append(h("ul", {}, tasks.map((task, t) => h("li", {}, h("a", { href: `#task-${t}` }, task)))));
})();
