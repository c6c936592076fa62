(() => {
  "use strict";
  const KEEP_US = 31e6, ASK_MS = 1000, FLOOR = 20;
  const [NUMBER, TASK, LEVEL, LANE, SUBMITTED, STARTED, FINISHED, OUTCOME, PAUSES] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
  const WINDOWS = [1, 5, 30];
  const $ = (id) => document.getElementById(id);
  const tip = $("tip"), canvas = $("lanes");
  const requests = new Map(), history = [], decisions = [];
  let news = null, paused = false, span = 5, complete = -Infinity, heard = 0, chosen = null, boxes = [];

  // Small things

  const time = (us) => {
    const [value, unit] = us < 1e3 ? [us, "µs"] : us < 1e6 ? [us / 1e3, "ms"] : [us / 1e6, "s"];
    const digits = value > 0 ? Math.min(2, Math.max(0, 2 - Math.floor(Math.log10(value)))) : 0;
    return `${value.toFixed(digits)} ${unit}`;
  };
  const rate = (value) => value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(1);
  const times = (value) => `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)}×`;
  const clock = (s) => s < 60 ? `${Math.floor(s)} s` : s < 3600 ? `${Math.floor(s / 60)} min` : `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`;
  const fill = (node, attributes, ...content) => {
    for (const [key, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "paint") node.style.setProperty("--p", `var(--${value})`);
      else if (key === "width" && node instanceof HTMLElement) node.style.setProperty("width", `${value}%`);
      else if (key === "left") node.style.setProperty("left", `${value}%`);
      else if (key === "on") node.addEventListener("click", value);
      else node.setAttribute(key, value);
    }
    node.append(...content.filter((part) => part !== null && part !== undefined));
    return node;
  };
  const el = (name, attributes = {}, ...content) => fill(document.createElement(name), attributes, ...content);
  const svg = (name, attributes = {}, ...content) => fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, ...content);
  const show = (event, lines) => {
    tip.replaceChildren(...lines.map((line, i) => el(i ? "small" : "b", {}, line)));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const below = event.clientY + 18 + box.height <= innerHeight;
    tip.style.setProperty("left", `${Math.max(8, Math.min(event.clientX + 14, innerWidth - box.width - 8))}px`);
    tip.style.setProperty("top", `${below ? event.clientY + 18 : event.clientY - box.height - 12}px`);
  };
  const hide = () => { tip.hidden = true; };

  /** The colour of a task: blue and its neighbours above the normal level, orange and its neighbours at it. */
  const paint = (name, level) => {
    const kind = level > 0 ? "c" : "n";
    const alike = news.tasks.filter((task) => (task.level > 0 ? "c" : "n") === kind).map((task) => task.name);
    return `${kind}${Math.max(0, alike.indexOf(name)) % 4}`;
  };
  const levelName = (level) => level === 0 ? "normal" : level === 1 ? "critical" : `level ${level}`;
  const end = (row) => row[FINISHED] ?? news.now_us;
  const parts = (row) => {
    const whole = Math.max(0, end(row) - row[SUBMITTED]), waited = Math.max(0, (row[STARTED] ?? end(row)) - row[SUBMITTED]);
    const stood = row[PAUSES].reduce((sum, [from, to]) => sum + to - from, 0);
    return { whole, waited, paused: stood, ran: Math.max(0, whole - waited - stood) };
  };
  const split = (of, scale, colour) => el("span", { class: "split" },
    ...[["waited", "wait"], ["paused", "pause"], ["ran", "run"]].filter(([what]) => of[what] > 0).map(([what, kind]) =>
      el("i", { class: `${kind}-fill`, width: 100 * of[what] / scale, paint: colour })));

  // The head of the page

  const head = () => {
    const served = news.tasks.filter((task) => task.level !== undefined);
    $("title").replaceChildren(`Serving ${served.length} network${served.length === 1 ? "" : "s"} on `, el("code", {}, news.device));
    const critical = served.filter((task) => task.level > 0 && task.slowdown_p99);
    const worst = critical.sort((a, b) => b.slowdown_p99 - a.slowdown_p99)[0];
    $("lead").replaceChildren(...(worst
      ? [el("b", {}, worst.name), " answers within ", el("b", {}, times(worst.slowdown_p99)), " of what it takes alone: p99 ", time(worst.p99_us), ` beside everything else, ${time(worst.alone_p99_us)} with nobody there.`]
      : served.some((task) => task.level > 0) ? [`What critical tasks take alone is known once ${FLOOR} of their requests have met nobody.`]
      : ["No task here is critical: all share the device as equals."]));
    const waiting = served.reduce((sum, task) => sum + task.queue_depth, 0), all = served.reduce((sum, task) => sum + (perSecond(task.name) ?? 0), 0);
    $("chips").replaceChildren(
      el("li", { class: news.ready ? "good" : "bad" }, news.ready ? "ready" : "not ready"),
      el("li", {}, `policy ${news.policy}`), el("li", {}, `${rate(all)} answers/s`),
      el("li", {}, `${waiting} waiting`), el("li", {}, `up ${clock(news.up_s)}`));
    $("notes").hidden = !news.notes.length;
    $("notes").replaceChildren(...news.notes.map((note) => el("p", {}, `${note[0].toUpperCase()}${note.slice(1)}.`)));
  };
  const perSecond = (name) => {
    if (history.length < 2) return null;
    const [first, last] = [history[0], history[history.length - 1]];
    const seconds = (last.now_us - first.now_us) / 1e6;
    return seconds > 0 && name in first.answered && name in last.answered ? (last.answered[name] - first.answered[name]) / seconds : null;
  };

  // Tasks

  const tasks = () => {
    const mostOf = (critical) => Math.max(2, ...news.tasks.filter((task) => task.level > 0 === critical).map((task) => task.slowdown_p99 ?? 0));
    const scales = { true: mostOf(true), false: mostOf(false) };
    $("tasks").replaceChildren(...news.tasks.map((task) => {
      if (task.level === undefined) {
        return el("tr", {}, el("th", { scope: "row" }, el("i", { class: "dot", paint: "rule" }), task.name),
          el("td", { colspan: 9, class: "soft" }, `${task.state.toLowerCase()}${task.reason ? `: ${task.reason}` : ""}`));
      }
      const colour = paint(task.name, task.level), per = perSecond(task.name), dash = "–", most = scales[task.level > 0];
      const number = (label, text, alarm) => el("td", { class: alarm ? "num alarm" : "num", "data-label": label }, text);
      const against = task.slowdown_p99
        ? el("div", { class: "meter" }, el("b", {}, times(task.slowdown_p99)), el("span", {},
          el("i", { width: 100 * Math.min(1, task.slowdown_p99 / most), paint: colour }), el("u", { left: 100 / most })))
        : el("small", {}, `known after ${FLOOR} alone (${task.alone_count} so far)`);
      const lost = task.failed + task.timed_out + task.rejected;
      return el("tr", {},
        el("th", { scope: "row" }, el("i", { class: "dot", paint: colour }), task.name, el("span", { class: `level ${task.level > 0 ? "c" : "n"}` }, task.level_name)),
        number("answered/s", per === null ? dash : rate(per)),
        number("p50", task.p50_us ? time(task.p50_us) : dash), number("p99", task.p99_us ? time(task.p99_us) : dash),
        number("p99 alone", task.alone_count >= FLOOR ? time(task.alone_p99_us) : dash),
        el("td", { class: "mid", "data-label": "p99 against alone" }, against),
        number("waiting", String(task.queue_depth)), number("preempted", task.preemptions.toLocaleString("en")),
        number("late", task.deadline_missed.toLocaleString("en"), task.deadline_missed > 0),
        number("failed", lost.toLocaleString("en"), lost > 0));
    }));
  };

  // Distributions

  const density = (values, place, width) => {
    const points = 160, shape = new Float64Array(points), spread = 0.014 * width;
    for (const value of values) {
      const at = place(value);
      for (let i = Math.max(0, Math.floor((at - 4 * spread) / width * (points - 1))); i < points && i * width / (points - 1) <= at + 4 * spread; i++) {
        shape[i] += Math.exp(-0.5 * ((i * width / (points - 1) - at) / spread) ** 2);
      }
    }
    const top = Math.max(...shape) || 1;
    return [...shape].map((value, i) => [i * width / (points - 1), value / top]);
  };
  const logTicks = (low, high, room) => {
    const found = (steps) => {
      const list = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) for (const m of steps) {
        const value = m * 10 ** e;
        if (value >= low && value <= high) list.push(value);
      }
      return list;
    };
    for (const steps of [[1, 1.5, 2, 3, 4, 5, 7], [1, 2, 5], [1, 3], [1]]) if (found(steps).length <= room) return found(steps);
    return found([1]).filter((_, i, all) => i % Math.ceil(all.length / room) === 0);
  };
  const latency = () => {
    const rows = news.tasks.filter((task) => task.count);
    if (!rows.length) { $("latency").replaceChildren(el("p", { class: "none" }, "Nothing has been answered yet.")); return; }
    const width = Math.max(300, $("latency").clientWidth), right = 62, top = 8, left = 2, plot = width - left - right;
    const tall = Math.max(58, Math.min(96, ($("latency").clientHeight - 40) / rows.length));
    const all = rows.flatMap((task) => [...task.curve_us, ...task.alone_curve_us, task.p99_us]);
    let low = Math.min(...all), high = Math.max(...all);
    const middle = Math.sqrt(low * high), half = Math.max(Math.sqrt(high / low), 1.3) * 1.12;
    low = middle / half; high = middle * half;
    const x = (us) => plot * Math.log(us / low) / Math.log(high / low), foot = top + tall * rows.length;
    const marks = logTicks(low, high, Math.max(3, Math.floor(plot / 74))).map((us) => svg("g", {},
      svg("line", { class: "grid", x1: left + x(us), x2: left + x(us), y1: top, y2: foot }),
      svg("text", { class: "tick", x: left + x(us), y: foot + 17, "text-anchor": x(us) < 20 ? "start" : "middle" }, us >= 1e6 ? `${+(us / 1e6).toPrecision(3)} s` : us >= 1e3 ? `${+(us / 1e3).toPrecision(3)} ms` : `${+us.toPrecision(3)} µs`)));
    const bands = rows.map((task, i) => {
      const base = top + tall * (i + 1) - 7, high1 = tall - 27, colour = paint(task.name, task.level);
      const outline = (values, least = -1) => density(values, x, plot).filter(([, value]) => value > least).map(([at, value]) => `${(left + at).toFixed(1)},${(base - high1 * value).toFixed(1)}`).join(" ");
      const tick = (us, kind, up) => svg("line", { class: kind, x1: left + x(us), x2: left + x(us), y1: base + (kind === "p99" ? 4 : 0), y2: base - up });
      const group = svg("g", { paint: colour },
        svg("rect", { class: "hit", x: 0, y: base - tall + 7, width, height: tall }),
        svg("line", { class: "rule", x1: left, x2: left + plot, y1: base, y2: base }),
        svg("polygon", { class: "shape", points: `${left},${base} ${outline(task.curve_us)} ${left + plot},${base}` }),
        task.alone_count >= FLOOR ? svg("polyline", { class: "ghost", points: outline(task.alone_curve_us, 0.006) }) : null,
        tick(task.p50_us, "p50", 11), tick(task.p99_us, "p99", 18),
        svg("text", { class: "label", x: left, y: base - tall + 22 }, task.name),
        svg("text", { class: "value", x: width - 2, y: base - 3, "text-anchor": "end" }, task.slowdown_p99 ? times(task.slowdown_p99) : time(task.p99_us)));
      const alone = task.alone_count >= FLOOR ? `alone: p50 ${time(task.alone_p50_us)}, p99 ${time(task.alone_p99_us)} of ${task.alone_count} requests` : `alone: ${task.alone_count} requests so far`;
      const lines = [task.name, `p50 ${time(task.p50_us)}, p99 ${time(task.p99_us)}, longest ${time(task.max_us)} of ${task.count} requests`, alone];
      group.addEventListener("pointermove", (event) => show(event, lines));
      group.addEventListener("pointerleave", hide);
      group.prepend(svg("title", {}, lines.join("; ")));
      return group;
    });
    const chart = svg("svg", { viewBox: `0 0 ${width} ${foot + 24}`, role: "img", "aria-label": "Latencies by task, now and alone" }, ...marks, ...bands);
    $("latency").replaceChildren(chart);
  };

  // What the policy promises

  const contract = () => {
    const names = Object.keys(news.report), box = $("contract");
    const isContract = news.policy.startsWith("contract"), stated = Number(news.policy.split(":")[1] ?? 1.05);
    $("h-contract").textContent = isContract ? "Contract" : `Policy ${news.policy}`;
    if (!isContract) {
      $("contract-sub").textContent = "It makes no promise in numbers. With contract:1.05 you say how slow critical requests may get, and the rest takes what that leaves.";
      box.replaceChildren(...names.map((name) => el("p", { class: "facts" }, `${name.replaceAll("_", " ")}: `, el("b", {}, String(+news.report[name].toPrecision(4))))));
      return;
    }
    $("contract-sub").textContent = `p99 of critical requests may be ${times(stated)} of what it is alone.`;
    const critical = news.tasks.filter((task) => task.level > 0);
    box.replaceChildren(...critical.map((task) => {
      const said = (key) => news.report[`${key} ${task.name}`] ?? (critical.length === 1 ? news.report[key] : undefined);
      const slow = said("slowdown_p99"), held = said("held"), width = said("width_sms"), solo = said("solo_p99_us");
      const badge = held === undefined ? ["wait", "measuring"] : held ? ["good", "held"] : ["bad", "not held"];
      const facts = [
        `${said("solo_samples") ?? 0} measured alone`, solo ? `p99 alone ${time(solo)}` : null,
        width === undefined ? null : `others keep ${width.toFixed(0)} SMs on average`,
        said("paused_holds") === 0 ? "not held even with all others paused" : null].filter(Boolean);
      return el("div", { class: "promise" }, el("span", { class: "big" }, slow === undefined ? "–" : times(slow)),
        el("span", { class: "who" }, task.name, el("span", { class: `badge ${badge[0]}` }, badge[1])), el("span", { class: "facts" }, facts.join(", ")));
    }), ...(critical.length ? [] : [el("p", { class: "none" }, "No task here is critical.")]));
  };

  // The slowest

  const shown = () => {
    const since = news.now_us - span * 1e6;
    return [...requests.values()].filter((row) => end(row) >= since);
  };
  const slowest = () => {
    const known = new Map(news.tasks.map((task) => [task.name, task.alone_count >= FLOOR]));
    const aloneOf = new Map(news.tasks.map((task) => [task.name, known.get(task.name) ? task.alone_p50_us : task.p50_us]));
    const rows = shown().filter((row) => row[FINISHED] !== null && aloneOf.get(row[TASK]))
      .map((row) => [(row[FINISHED] - row[SUBMITTED]) / aloneOf.get(row[TASK]), row]).sort((a, b) => b[0] - a[0]);
    const counts = new Map(), ranked = rows.map(([slow, row]) => {
      counts.set(row[TASK], (counts.get(row[TASK]) ?? 0) + 1);
      return [slow, row, counts.get(row[TASK])];
    });
    const urgent = (a, b) => b[1][LEVEL] - a[1][LEVEL] || b[0] - a[0];
    const best = ranked.sort((a, b) => a[2] - b[2] || urgent(a, b)).slice(0, 6).sort(urgent);  // the first of every task, then the second
    $("slow-sub").textContent = `of the last ${span} s. Grey: waited. Pale: paused.`;
    const items = best.map(([slow, row]) => {
      const colour = paint(row[TASK], row[LEVEL]), of = parts(row);
      return el("li", {}, el("button", { type: "button", on: () => tell(row[NUMBER]), "aria-label": `${row[TASK]} number ${row[NUMBER]}, ${time(of.whole)}: why` },
        el("span", { class: "name" }, el("i", { class: "dot", paint: colour }), `${row[TASK]} #${row[NUMBER]}`),
        el("span", {}, el("b", {}, time(of.whole)), known.get(row[TASK]) ? el("small", {}, ` ${times(slow)}`) : null), split(of, of.whole || 1, colour)));
    });
    if (!$("slow").contains(document.activeElement)) $("slow").replaceChildren(...(items.length ? items : [el("li", { class: "none" }, "Nothing was answered meanwhile.")]));
  };

  // Lanes

  const lanes = () => {
    const rows = shown(), from = news.now_us - span * 1e6, used = new Set(news.tasks.map((task) => task.level));
    const names = news.lanes.map((lane, i) => ({ ...lane, i })).filter((lane) => rows.some((row) => row[LANE] === lane.i));
    const width = canvas.clientWidth || canvas.parentElement.clientWidth - 36, tall = 84, foot = 24, height = Math.max(1, names.length) * tall + foot;
    const ratio = window.devicePixelRatio || 1, pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const colours = new Map(), colour = (name) => colours.get(name) ?? colours.set(name, style.getPropertyValue(`--${name}`).trim()).get(name);
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    canvas.style.setProperty("height", `${height}px`);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const font = (size, weight) => { pen.font = `${weight} ${size}px ${getComputedStyle(document.body).fontFamily}`; };
    const x = (us) => Math.max(0, (us - from) / (span * 1e6) * width);
    const step = width < 560 ? span / 2 : span / 5;
    font(12, 400);
    for (let s = 0; s <= span; s += step) {
      const at = width * (1 - s / span);
      pen.strokeStyle = colour("line"); pen.beginPath(); pen.moveTo(Math.round(at) + 0.5, 22); pen.lineTo(Math.round(at) + 0.5, height - foot); pen.stroke();
      pen.fillStyle = colour("soft"); pen.textAlign = s === 0 ? "right" : s === span ? "left" : "center";
      pen.fillText(s === 0 ? "now" : `−${+s.toPrecision(2)} s`, at, height - 6);
    }
    boxes = [];
    const seconds = Math.max(1e-6, Math.min(span, (news.now_us - complete) / 1e6));
    names.forEach((lane, n) => {
      const top = n * tall, bar = top + 24, deep = top + 56, mine = rows.filter((row) => row[LANE] === lane.i);
      const level = mine[0][LEVEL], running = mine.filter((row) => row[STARTED] !== null);
      pen.fillStyle = colour("free"); pen.fillRect(x(complete), bar, width - x(complete), 26);
      let busy = 0;
      for (const row of running) {
        const begin = x(row[STARTED]), stop = x(end(row)), hue = colour(paint(row[TASK], row[LEVEL]));
        const edges = [row[STARTED], ...row[PAUSES].flat(), end(row)];
        for (let i = 0; i + 1 < edges.length; i++) {
          const a = x(edges[i]), b = x(edges[i + 1]);
          if (b <= 0 || edges[i + 1] <= edges[i]) continue;
          if (i % 2 === 0) busy += (Math.min(edges[i + 1], news.now_us) - Math.max(edges[i], from, complete)) / 1e6;
          pen.globalAlpha = i % 2 ? 0.32 : 1; pen.fillStyle = hue;
          pen.fillRect(a, bar, Math.max(b - a - (b - a > 3 ? 0.8 : 0), 0.6), 26);
        }
        pen.globalAlpha = 1;
        font(11.5, 500);
        const name = `${row[TASK]} ${row[NUMBER]}`;
        if (x(edges[1]) - begin > 24 && pen.measureText(name).width < x(edges[1]) - begin - 8) {
          pen.fillStyle = level > 0 ? colour("c-ink") : "#241703"; pen.textAlign = "left"; pen.fillText(name, Math.max(begin, 0) + 5, bar + 17);
        }
        if (row[NUMBER] === chosen) { pen.strokeStyle = colour("accent"); pen.lineWidth = 2; pen.strokeRect(begin, bar - 1, Math.max(stop - begin, 3), 28); pen.lineWidth = 1; }
        boxes.push([begin, Math.max(stop, begin + 2), bar, bar + 26, row]);
      }
      const changes = mine.flatMap((row) => [[row[SUBMITTED], 1], [row[STARTED] ?? end(row), -1]]).concat(
        rows.filter((row) => row[LANE] === null && row[LEVEL] === level).flatMap((row) => [[row[SUBMITTED], 1], [end(row), -1]])).sort((a, b) => a[0] - b[0]);
      let depth = 0, most = 0;
      for (const [, change] of changes) most = Math.max(most, depth += change);
      const up = (count) => 20 * count / Math.max(most, 4);
      pen.beginPath(); pen.moveTo(0, deep + 20); depth = 0;
      for (const [us, change] of changes) {
        const at = Math.min(x(us), width);
        pen.lineTo(at, deep + 20 - up(depth)); depth += change; pen.lineTo(at, deep + 20 - up(depth));
      }
      pen.lineTo(width, deep + 20 - up(depth)); pen.lineTo(width, deep + 20); pen.closePath();
      pen.globalAlpha = 0.35; pen.fillStyle = colour("soft"); pen.fill(); pen.globalAlpha = 1;
      pen.strokeStyle = colour("rule"); pen.beginPath(); pen.moveTo(0, deep + 20.5); pen.lineTo(width, deep + 20.5); pen.stroke();
      font(12.5, 620); pen.textAlign = "left"; pen.fillStyle = level > 0 ? colour("c") : colour("n-deep");
      pen.fillText(lane.name, 0, bar - 8);
      const left = pen.measureText(lane.name).width + 10;
      font(12, 400); pen.fillStyle = colour("soft");
      pen.fillText(`ran ${(100 * busy / seconds).toFixed(0)} % of the time, at most ${most} waiting`, left, bar - 8);
    });
    if (!names.length) { font(14, 400); pen.fillStyle = colour("soft"); pen.textAlign = "left"; pen.fillText("Nothing ran meanwhile.", 0, 46); }
    canvas.setAttribute("aria-label", `Lanes over the last ${span} seconds: ${names.map((lane) => `${lane.name}, ${rows.filter((row) => row[LANE] === lane.i).length} requests`).join("; ") || "nothing ran"}`);
    $("lanes-sub").textContent = `the last ${span} s, ${rows.length.toLocaleString("en")} requests`;
    const levels = news.tasks.filter((task) => task.level !== undefined && used.has(task.level));
    $("legend").replaceChildren(...levels.map((task) => el("span", {}, el("i", { class: "key", paint: paint(task.name, task.level) }), task.name)),
      el("span", {}, el("i", { class: "key pause-fill", paint: "n0" }), "paused"), el("span", {}, el("i", { class: "key step" }), "waiting"));
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    const near = boxes.filter(([begin, stop, top, bottom]) => x >= begin - 1.5 && x <= stop + 1.5 && y >= top && y <= bottom);
    return near.sort((a, b) => Math.abs(a[0] + a[1] - 2 * x) - Math.abs(b[0] + b[1] - 2 * x))[0]?.[4] ?? null;
  };

  // One request

  const tell = async (number) => {
    chosen = number;
    const answer = await fetch(`/v2/trace/${number}`).then((reply) => reply.json()).catch(() => ({ error: "The server did not answer." }));
    const box = $("story");
    box.hidden = false;
    $("h-story").textContent = answer.error ?? answer.headline;
    const row = requests.get(number), colour = answer.task === undefined ? "soft" : paint(answer.task, row ? row[LEVEL] : 0);
    const scale = Math.max(answer.latency_us ?? 0, answer.alone_us ?? 0) || 1;
    const of = Object.fromEntries((answer.parts ?? []).map((part) => [part.what, part.length_us]));
    $("story-bars").replaceChildren(...(answer.error ? [] : [el("em", {}, "this one"), split(of, scale, colour), el("b", {}, time(answer.latency_us)),
      ...(answer.alone_us ? [el("em", {}, "alone"), split({ waited: 0, paused: 0, ran: answer.alone_us }, scale, "soft"), el("b", {}, time(answer.alone_us))] : [])]));
    const kinds = { waited: "wait", paused: "pause", ran: "run" };
    $("story-parts").replaceChildren(...(answer.parts ?? []).flatMap((part) => [
      el("dt", {}, el("i", { class: `key ${kinds[part.what]}-fill`, paint: colour }), part.what),
      el("dd", { class: "num" }, time(part.length_us)), el("dd", {}, part.text)]));
    $("story-notes").hidden = !(answer.notes ?? []).length;
    $("story-notes").replaceChildren(...(answer.notes ?? []).map((note) => el("li", {}, note)));
    box.focus({ preventScroll: true });
    box.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    lanes();
  };

  const told = () => {
    $("decisions").replaceChildren(...(decisions.length ? decisions.slice(-12).reverse().map(([us, event, task, number, commands]) =>
      el("tr", {}, el("td", {}, `${time(Math.max(0, news.now_us - us))} ago`), el("td", {}, task ? `${task} #${number} ${event}` : event), el("td", {}, ...commands.map((text) => el("p", {}, text)))))
      : [el("tr", {}, el("td", { colspan: 3 }, "The policy has not had to decide anything yet."))]));
  };

  // News

  const take = (fresh) => {
    if (news && fresh.up_s < news.up_s) { requests.clear(); history.length = 0; decisions.length = 0; complete = -Infinity; }
    if (fresh.since_us !== null) complete = Math.max(complete, fresh.since_us);
    const known = news ? news.now_us : -Infinity;
    news = fresh;
    for (const row of fresh.requests) requests.set(row[NUMBER], row);
    const since = fresh.now_us - KEEP_US, open = new Set(fresh.requests.map((row) => row[NUMBER]));
    for (const [number, row] of requests) if (end(row) < since || (row[FINISHED] === null && !open.has(number))) requests.delete(number);
    const last = decisions.length ? decisions[decisions.length - 1][0] : -Infinity;
    decisions.push(...fresh.decisions.filter((one) => one[0] > last));
    decisions.splice(0, Math.max(0, decisions.length - 200));
    if (fresh.now_us > known) history.push({ now_us: fresh.now_us, answered: Object.fromEntries(fresh.tasks.filter((task) => task.level !== undefined).map((task) => [task.name, task.answered])) });
    if (history.length > 6) history.shift();
  };
  const draw = () => { if (news) { head(); tasks(); latency(); contract(); slowest(); lanes(); told(); } };
  const state = (kind, text) => { $("state").className = `state ${kind}`; const place = $("state").lastElementChild; if (place.textContent !== text) place.textContent = text; };
  const ask = async () => {
    if (!paused && !document.hidden) {
      try {
        const reply = await fetch(`/live.json${news ? `?since=${news.now_us - 2e5}` : ""}`, { signal: AbortSignal.timeout(5000) });
        if (!reply.ok) throw new Error(`the server says ${reply.status}`);
        take(await reply.json());
        heard = Date.now();
        draw();
        state("on", "live");
      } catch (error) {
        state("off", heard ? `no answer for ${clock((Date.now() - heard) / 1000)}` : "no answer");
      }
    }
    setTimeout(ask, ASK_MS);
  };

  $("windows").append(...WINDOWS.map((seconds) => el("button", { type: "button", "aria-pressed": String(seconds === span), "data-s": seconds }, `${seconds} s`)));
  $("windows").addEventListener("click", (event) => {
    const seconds = Number(event.target.dataset.s);
    if (!seconds) return;
    span = seconds;
    for (const button of $("windows").children) button.setAttribute("aria-pressed", String(Number(button.dataset.s) === span));
    draw();
  });
  $("pause").addEventListener("click", () => {
    paused = !paused;
    $("pause").setAttribute("aria-pressed", String(paused));
    $("pause").textContent = paused ? "Go on" : "Pause";
    state(paused ? "" : "on", paused ? "paused" : "live");
  });
  $("story-close").addEventListener("click", () => { $("story").hidden = true; chosen = null; draw(); });
  canvas.addEventListener("pointermove", (event) => {
    const row = under(event);
    canvas.style.setProperty("cursor", row ? "pointer" : "default");
    if (!row) { hide(); return; }
    const of = parts(row), say = [`waited ${time(of.waited)}`, of.paused ? `paused ${time(of.paused)}` : null, `ran ${time(of.ran)}`].filter(Boolean).join(", ");
    show(event, [`${row[TASK]} #${row[NUMBER]}`, `${levelName(row[LEVEL])}, ${row[OUTCOME] || "not answered yet"}, ${time(of.whole)}`, say]);
  });
  canvas.addEventListener("pointerleave", hide);
  canvas.addEventListener("click", (event) => { const row = under(event); if (row) tell(row[NUMBER]); });
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  ask();
})();
