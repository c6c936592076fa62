(() => {
  "use strict";
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  root.classList.add("js");

  const show = (event, lines) => {
    tip.replaceChildren(...lines.map((line, i) => {
      const part = document.createElement(i ? "small" : "b");
      part.textContent = line;
      return part;
    }));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
    const y = event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18;
    tip.style.left = `${Math.max(8, x)}px`;
    tip.style.top = `${y}px`;
  };
  const hide = () => { tip.hidden = true; };
  const time = (us, among = us) => Math.abs(among) >= 1000 ? `${+(us / 1000).toPrecision(4)} ms` : `${+us.toPrecision(4)} µs`;

  for (const part of document.querySelectorAll("[data-tip]")) {
    const title = part.querySelector("title");
    if (title) title.remove();
    part.setAttribute("aria-label", part.dataset.tip);
    const [head, rest] = part.dataset.tip.split(/: (.*)/);
    part.addEventListener("pointermove", (event) => show(event, [head, ...rest.split(", ")]));
    part.addEventListener("pointerleave", hide);
  }

  const rounds = (low, high, count) => {
    const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i++) found.push(i * step);
    return found;
  };

  class Strip {
    constructor(svg, bars, tasks) {
      const view = svg.querySelector(".view");
      Object.assign(this, { svg, bars, tasks, length: +svg.dataset.length });
      Object.assign(this, { left: +view.getAttribute("x"), plot: +view.getAttribute("width"), width: svg.viewBox.baseVal.width });
      this.title = svg.querySelector("title");
      this.zoom = svg.querySelector(".zoom");
      this.names = [...svg.querySelectorAll(".name")];
      this.markers = [...svg.querySelectorAll(".markers path")];
      this.ticks = svg.querySelector(".ticks");
      this.cursor = svg.querySelector(".cursor");
      svg.setAttribute("aria-label", this.title.textContent);
      this.title.remove();
      [...svg.querySelectorAll(".bar")].forEach((bar, i) => { bar.dataset.i = i; });
    }

    draw(from, to) {
      const scale = 1 / (to - from), { left: edge, plot } = this;
      const place = (us) => (us / this.length - from) * scale * plot;
      Object.assign(this, { from, to });
      this.zoom.setAttribute("transform", `translate(${-from * scale * plot} 0) scale(${scale} 1)`);
      for (const name of this.names) {
        const begin = place(+name.dataset.t), end = place(+name.dataset.t + +name.dataset.d);
        const left = Math.max(begin, 0), room = Math.min(end, plot) - left;
        name.setAttribute("x", left + 4);
        name.setAttribute("visibility", room > 6.2 * name.textContent.length + 6 ? "visible" : "hidden");
      }
      for (const mark of this.markers) mark.setAttribute("transform", `translate(${place(+mark.dataset.t)} ${mark.dataset.y})`);
      const copy = this.ticks.firstElementChild;
      this.ticks.replaceChildren(...rounds(from * this.length, to * this.length, 8).map((us) => {
        const tick = copy.cloneNode(true);
        tick.setAttribute("transform", `translate(${edge + place(us)} ${this.ticks.dataset.y})`);
        tick.querySelector("text").textContent = time(us, this.length);
        return tick;
      }));
    }

    /** Position of the pointer: share of what is shown, and time. */
    at(event) {
      const box = this.svg.getBoundingClientRect();
      const share = ((event.clientX - box.left) / box.width * this.width - this.left) / this.plot;
      return { share, us: (this.from + share * (this.to - this.from)) * this.length };
    }

    describe([task, request, launch, kernel, begin, length, blocks, workers, threads], whole) {
      const head = `${this.tasks[task]}, launch ${launch}: ${kernel}`;
      if (!whole) return head;
      const form = workers === null ? "original form" : `elastic, ${workers} workers`;
      return [head, `request ${request}, ${time(length)}`, blocks, `${form}, ${threads} threads each`];
    }

    hover(event) {
      const { share, us } = this.at(event);
      if (share < 0 || share > 1) { this.leave(); return; }
      this.cursor.setAttribute("x1", this.left + share * this.plot);
      this.cursor.setAttribute("x2", this.left + share * this.plot);
      this.cursor.setAttribute("visibility", "visible");
      const bar = event.target.dataset && event.target.dataset.i;
      if (bar !== undefined) { show(event, this.describe(this.bars[+bar], true)); return; }
      const running = this.bars.filter((b) => b[4] <= us && us < b[4] + b[5]).map((b) => this.describe(b, false));
      show(event, [`at ${time(us, this.length)}`, ...(running.length ? running.slice(0, 8) : ["nothing runs"])]);
    }

    leave() { this.cursor.setAttribute("visibility", "hidden"); hide(); }
  }

  for (const card of document.querySelectorAll(".time")) {
    const { tasks, bars } = data[card.dataset.key];
    const pattern = card.querySelector("pattern");
    const strips = [...card.querySelectorAll(".lane")].map((lane) =>
      new Strip(lane.querySelector("svg.strip"), bars[lane.dataset.policy], tasks));
    let from = 0, to = 1, drag = null;
    const draw = () => {
      strips.forEach((strip) => strip.draw(from, to));
      pattern.setAttribute("patternTransform", `scale(${to - from} 1) rotate(45)`);
    };
    const zoom = (factor, around) => {
      const span = Math.min(1, Math.max(1 / 60, (to - from) * factor)), fixed = from + around * (to - from);
      from = Math.min(1 - span, Math.max(0, fixed - around * span));
      to = from + span;
      draw();
    };
    for (const button of card.querySelectorAll("[data-show]")) button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      card.querySelector(`.lane[data-policy="${CSS.escape(button.dataset.show)}"]`).classList.toggle("off", !on);
    });
    for (const button of card.querySelectorAll("[data-zoom]")) button.addEventListener("click", () =>
      zoom({ in: 0.5, out: 2, all: 60 }[button.dataset.zoom], 0.5));
    for (const strip of strips) {
      strip.svg.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        zoom(event.deltaY > 0 ? 1.25 : 0.8, Math.min(1, Math.max(0, strip.at(event).share)));
      }, { passive: false });
      strip.svg.addEventListener("dblclick", (event) => zoom(0.4, strip.at(event).share));
      strip.svg.addEventListener("pointerdown", (event) => {
        drag = { share: strip.at(event).share, from, span: to - from };
        strip.svg.setPointerCapture(event.pointerId);
      });
      strip.svg.addEventListener("pointermove", (event) => {
        if (!drag) { strip.hover(event); return; }
        hide();
        from = Math.min(1 - drag.span, Math.max(0, drag.from + (drag.share - strip.at(event).share) * drag.span));
        to = from + drag.span;
        draw();
      });
      for (const end of ["pointerup", "pointercancel"]) strip.svg.addEventListener(end, () => { drag = null; });
      strip.svg.addEventListener("pointerleave", () => strip.leave());
    }
    draw();
  }
})();
