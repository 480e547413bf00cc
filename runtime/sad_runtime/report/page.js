"use strict";
(() => {
  const PER_PAGE = 50;
  const WAIT_MS = 150;
  const DEFAULTS = { show: "all", q: "", class: "", code: "", from: "", to: "", sort: "pictures", page: "1" };

  const data = JSON.parse(document.getElementById("rows").textContent);
  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  const rows = data.name.length;
  const failures = new Map(data.failures.map(([row, code, message]) => [row, { code, message }]));
  const frames = new Map(data.frames);
  const pictureOf = new Map(data.pictured.map((row, i) => [row, i]));

  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const captions = JSON.parse(list.dataset.captions);
  const legend = document.querySelector(".legend");
  const status = document.getElementById("status");
  const results = document.getElementById("results");
  const pagers = [...document.querySelectorAll(".pager")];
  const bars = [...document.querySelectorAll(".bars button")];

  const number = new Intl.NumberFormat("en");
  const percent = (parts) => `${((100 * parts) / data.parts).toFixed(1)} %`;
  const path = (row) => data.folders[data.folder[row]] + data.name[row];
  const changed = (row) => data.plain[row] >= 0 && data.plain[row] !== data.label[row];
  const failed = (row) => data.label[row] < 0;
  const shown = (row) => data.truth[row] ?? -1; // what the image shows, where that is known
  const wrong = (row) => shown(row) >= 0 && !failed(row) && shown(row) !== data.label[row];
  const LOST = 0, GAINED = 1, OTHER = 2, NONE = 3;
  const change = (row) => {
    if (!changed(row)) return NONE;
    if (data.plain[row] === shown(row)) return LOST;
    return data.label[row] === shown(row) ? GAINED : OTHER;
  };

  let state = { ...DEFAULTS };
  let matches = [];

  // ---- which rows, in which order

  let lowered = null;
  const searchable = () => (lowered ??= data.name.map((_, row) => path(row).toLowerCase()));

  const orders = new Map();
  const everyRow = () => Array.from({ length: rows }, (_, row) => row);
  const makeOrder = {
    run: everyRow,
    pictures: () => everyRow().sort((a, b) => pictureOf.has(b) - pictureOf.has(a)),
    // Failures have no confidence and come last either way.
    lowest: () => everyRow().sort((a, b) => failed(a) - failed(b) || data.probability[a] - data.probability[b]),
    highest: () => everyRow().sort((a, b) => failed(a) - failed(b) || data.probability[b] - data.probability[a]),
    change: () => everyRow().sort((a, b) => change(a) - change(b)),
    path: () => {
      const paths = data.name.map((_, row) => path(row));
      return everyRow().sort((a, b) => (paths[a] < paths[b] ? -1 : paths[a] > paths[b] ? 1 : 0));
    },
  };
  function ordered(sort) {
    if (!orders.has(sort)) orders.set(sort, makeOrder[sort]());
    return orders.get(sort);
  }

  const shows = {
    all: () => true,
    changed: (row) => changed(row),
    wrong: (row) => wrong(row),
    errors: (row) => failed(row),
    pictured: (row) => pictureOf.has(row),
  };

  function find() {
    const tests = [];
    if (state.show !== "all") tests.push(shows[state.show]);
    if (state.class !== "") tests.push((row) => data.label[row] === Number(state.class));
    if (state.code !== "") tests.push((row) => failures.has(row) && data.codes[failures.get(row).code] === state.code);
    if (state.from !== "" || state.to !== "") {
      const low = state.from === "" ? 0 : Number(state.from) / 100;
      const high = state.to === "" ? 1 : Number(state.to) / 100;
      tests.push((row) => {
        const p = data.probability[row] / data.parts;
        return !failed(row) && p >= low && p <= high;
      });
    }
    if (state.q !== "") {
      const paths = searchable();
      const wanted = state.q.toLowerCase();
      tests.push((row) => paths[row].includes(wanted));
    }
    matches = ordered(state.sort).filter((row) => tests.every((test) => test(row)));
  }

  // ---- elements; text only ever goes in as text

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  function strip(row) {
    const { height, width } = list.dataset;
    const source = "data:image/webp;base64," + pictures[pictureOf.get(row)];
    const box = element("div", { className: "strip" });
    if (Math.max(height, width) < 64) box.classList.add("small");
    if (captions.length === 1) box.classList.add("single");
    const pictured = captions.length === 1 ? "Image" : `Image, saliency and ${captions[2]}`;
    for (const i of captions.keys()) {
      const alt = i === 0 ? `${pictured} of ${path(row)}` : "";
      const image = element("img", { src: source, alt, decoding: "async" });
      image.style.aspectRatio = `${width} / ${height}`;
      image.style.height = "auto";
      box.append(image);
    }
    return box;
  }

  function ranking(row) {
    const others = data.ranks - 1;
    const ranked = [[data.label[row], data.probability[row]]];
    for (let i = 0; i < others; i++) {
      const at = 2 * (row * others + i);
      if (data.rest[at] >= 0) ranked.push([data.rest[at], data.rest[at + 1]]);
    }
    if (ranked.length < 2) return [];
    const body = element("tbody");
    for (const [label, probability] of ranked) {
      body.append(
        element(
          "tr",
          {},
          element("th", { scope: "row" }, element("bdi", {}, data.classes[label])),
          element("td", {}, percent(probability)),
        ),
      );
    }
    const heads = ["Class", "Confidence"].map((text) => element("th", { scope: "col" }, text));
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);
    return [element("details", {}, element("summary", {}, `Top ${ranked.length}`), table)];
  }

  function described(row) {
    const text = element("div", {}, element("h3", { className: "path" }, element("bdi", {}, path(row))));
    if (failures.has(row)) {
      const { code, message } = failures.get(row);
      const error = element("p", { className: "error" }, element("code", {}, data.codes[code]));
      error.append(element("bdi", {}, message));
      text.append(error);
      return text;
    }
    const verdict = element("p", { className: "verdict" }, element("bdi", {}, data.classes[data.label[row]]));
    text.append(verdict);
    if (wrong(row)) {
      text.append(element("p", { className: "error" }, "Wrong: it shows ", element("bdi", {}, data.classes[shown(row)])));
    }
    if (changed(row)) {
      const before = element("bdi", {}, data.classes[data.plain[row]]);
      const verdicts = { [LOST]: ", which is right", [GAINED]: ", which is wrong" };
      const right = verdicts[change(row)] ?? "";
      text.append(element("p", { className: "note" }, "In the recalibrated first pass: ", before, right));
    }
    if (frames.has(row)) {
      text.append(element("p", { className: "path" }, `${number.format(frames.get(row))} frames, the first is shown`));
    }
    text.append(...ranking(row));
    return text;
  }

  const SVG = "http://www.w3.org/2000/svg";

  function share(row) {
    const box = element("p", { className: "share" }, element("span", { className: "unseen" }, "Confidence "));
    box.append(percent(data.probability[row]));
    const bar = document.createElementNS(SVG, "svg");
    const filled = document.createElementNS(SVG, "rect");
    bar.setAttribute("aria-hidden", "true");
    filled.setAttribute("width", `${(100 * data.probability[row]) / data.parts}%`);
    filled.setAttribute("height", "100%");
    bar.append(filled);
    box.append(bar);
    return box;
  }

  function item(row) {
    const made = element("li");
    if (pictureOf.has(row)) made.append(strip(row));
    else if (!list.classList.contains("bare")) made.append(element("div", { className: "strip" }));
    made.append(described(row));
    if (!failed(row)) made.append(share(row));
    return made;
  }

  // ---- the page of the list that is seen

  const pages = () => Math.max(1, Math.ceil(matches.length / PER_PAGE));

  function render() {
    const page = Math.min(Math.max(1, Number(state.page) || 1), pages());
    state.page = String(page);
    const start = (page - 1) * PER_PAGE;
    const seen = matches.slice(start, start + PER_PAGE);
    const withPictures = seen.some((row) => pictureOf.has(row));
    list.classList.toggle("bare", !withPictures);
    legend.hidden = !withPictures;
    list.replaceChildren(...seen.map(item));
    list.start = start + 1;
    if (!seen.length) list.append(element("li", { className: "empty" }, "Nothing matches these filters."));
    const all = `${number.format(rows)} ${rows < data.images ? "listed images" : "images"}`;
    const found = matches.length === rows ? all : `${number.format(matches.length)} that match, of ${all}`;
    status.textContent = seen.length
      ? `${number.format(start + 1)}–${number.format(start + seen.length)} of ${found}`
      : `No match among ${all}`;
    for (const pager of pagers) {
      pager.hidden = pages() === 1;
      pager.querySelector("input").value = page;
      pager.querySelector("input").max = pages();
      pager.querySelector(".last").textContent = `of ${number.format(pages())}`;
      for (const button of pager.querySelectorAll("button")) {
        // Not `disabled`, which would drop the keyboard's focus at the last page.
        button.setAttribute("aria-disabled", String(page === target(button.value)));
      }
    }
    for (const bar of bars) bar.setAttribute("aria-pressed", String(pressed(bar)));
  }

  const target = (step) =>
    ({ first: 1, previous: Math.max(1, state.page - 1), next: Math.min(pages(), Number(state.page) + 1), last: pages() })[step];

  function go(page, pager) {
    state.page = String(page);
    render();
    remember();
    if (pager === pagers[1]) results.focus(); // below the list: begin reading at its top
  }

  for (const pager of pagers) {
    const button = (value, text) => {
      const made = element("button", { type: "button", value }, text);
      made.addEventListener("click", () => go(target(value), pager));
      return made;
    };
    const input = element("input", { type: "number", min: 1 });
    input.addEventListener("change", () => go(input.value, pager));
    pager.append(
      button("first", "First"),
      button("previous", "Previous"),
      element("label", {}, "Page ", input),
      element("span", { className: "last" }),
      button("next", "Next"),
      button("last", "Last"),
    );
  }

  // ---- state: form ↔ fragment, so that a view can be sent

  function remember() {
    const kept = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) if (value !== DEFAULTS[name]) kept.set(name, value);
    const fragment = kept.toString();
    history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
  }

  const allowed = {
    show: (value) => Object.hasOwn(shows, value),
    sort: (value) => Object.hasOwn(makeOrder, value),
    class: (value) => data.label.includes(Number(value)) && value !== "",
    code: (value) => data.codes.includes(value),
    from: (value) => Number.isFinite(Number(value)),
    to: (value) => Number.isFinite(Number(value)),
    page: (value) => Number.isInteger(Number(value)),
    q: () => true,
  };

  function recall() {
    const given = new URLSearchParams(location.hash.slice(1));
    state = { ...DEFAULTS };
    for (const name of Object.keys(DEFAULTS)) {
      const value = given.get(name);
      if (value !== null && allowed[name](value)) state[name] = value;
    }
    fill();
    find();
    render();
  }

  function fill() {
    for (const name of Object.keys(DEFAULTS)) if (name !== "page") form.elements[name].value = state[name];
  }

  function narrow(changes) {
    state = { ...state, ...changes, page: "1" };
    fill();
    find();
    render();
    remember();
  }

  const read = () => {
    const { page, ...filters } = DEFAULTS;
    const values = Object.keys(filters).map((name) => [name, form.elements[name].value]);
    return Object.fromEntries(values);
  };

  let waiting;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => narrow(read()), WAIT_MS);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(waiting);
    narrow(read());
  });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    clearTimeout(waiting);
    narrow(DEFAULTS);
  });
  addEventListener("hashchange", () => {
    if (location.hash !== "#results") recall();
  });

  // ---- bars and error groups filter

  const filterOf = (bar) =>
    "class" in bar.dataset ? { class: bar.dataset.class } : { from: bar.dataset.from, to: bar.dataset.to };
  const pressed = (bar) => Object.entries(filterOf(bar)).every(([name, value]) => state[name] === value);

  for (const bar of bars) {
    bar.addEventListener("click", () => {
      const filter = filterOf(bar);
      const cleared = Object.fromEntries(Object.keys(filter).map((name) => [name, ""]));
      narrow(pressed(bar) ? cleared : filter);
    });
  }
  for (const button of document.querySelectorAll("button[data-code]")) {
    button.addEventListener("click", () => {
      narrow({ ...DEFAULTS, code: button.dataset.code, show: "errors" });
      results.focus();
    });
  }

  // ---- what can be chosen

  const counted = new Map();
  for (const label of data.label) if (label >= 0) counted.set(label, (counted.get(label) ?? 0) + 1);
  for (const [label, n] of [...counted].sort((a, b) => a[0] - b[0])) {
    form.elements.class.append(new Option(`${data.classes[label]} (${number.format(n)})`, label));
  }
  for (const code of data.codes) form.elements.code.append(new Option(code, code));
  document.getElementById("code-field").hidden = !data.codes.length;
  for (const place of form.querySelectorAll("[data-count]")) {
    const n = data.name.reduce((sum, _, row) => sum + shows[place.dataset.count](row), 0);
    place.textContent = number.format(n);
    const nothing = n === 0 && place.dataset.count !== "all";
    place.closest("label").hidden = nothing;
  }
  document.documentElement.classList.add("js");
  recall();
})();
