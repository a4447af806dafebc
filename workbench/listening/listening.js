// The reading and listening widget: a text with its sound, the word under the playhead, and the divergence of
// every token as a ribbon on the same time axis. Python sends a card and its FLAC; keys send back what was said.

const REASONS = ["bad synthesis", "not speakable", "duplicate", "off-topic", "unsafe", "other"];
const VERMILION = "213,94,0"; // Okabe-Ito: readable by the colour-blind, in light and dark
const HEIGHT = { wave: 72, ribbon: 26, axis: 16 };
const MEASURES = {
  d: "D: teacher on text against student on speech",
  m: "M: student on text against student on speech",
  f: "F: teacher against student, both on text",
};

const node = (tag, cls, text) => {
  const e = document.createElement(tag);
  if (cls) e.className = cls;
  if (text !== undefined) e.textContent = text;
  return e;
};
const fixed = (x, digits = 2) => (x === null || x === undefined ? "–" : Number(x).toFixed(digits));
const visible = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "↵");

function render({ model, el }) {
  const root = node("div", "salad-listen");
  root.tabIndex = 0;
  root.setAttribute("aria-label", "reading and listening: J next, K previous, space play, R replay, 1 to 6 drop, Y keep, U undo");
  const head = node("div", "head");
  const text = node("div", "text");
  const stage = node("div", "stage");
  const canvas = node("canvas");
  const tip = node("div", "tip");
  const said = node("div", "said");
  stage.append(canvas);
  const bar = node("div", "bar");
  const options = node("div", "options");
  root.append(head, text, stage, bar, said, options, tip);
  el.append(root);

  const audio = new Audio();
  let url = null, peaks = null, duration = 0, frame = 0, shown = null, wantPlay = false;
  let measure = "d", rects = [], hovered = -1;

  const button = (label, key, title, act, cls) => {
    const b = node("button", cls);
    b.type = "button";
    b.title = title;
    b.append(node("kbd", "", key), document.createTextNode(label));
    b.addEventListener("click", () => { act(); root.focus({ preventScroll: true }); });
    bar.append(b);
    return b;
  };
  const send = (message) => model.send(message);
  const go = (step) => { wantPlay = auto.checked; send({ type: "go", step }); };
  const decide = (verdict, reason) => {
    if (!shown || !judges) return;
    wantPlay = auto.checked && verdict !== "undo";
    send({ type: "decide", verdict, reason: reason ?? null, note: note.value || null, sample_id: shown.sample_id });
    note.value = "";
  };
  const toggle = () => {
    if (!url) return;
    if (audio.paused) { if (audio.ended) audio.currentTime = 0; audio.play().catch(() => {}); } else audio.pause();
  };
  const replay = () => { if (url) { audio.currentTime = 0; audio.play().catch(() => {}); } };

  button("previous", "K", "the previous text", () => go(-1));
  const playButton = button("play", "space", "play or pause", toggle, "play");
  button("replay", "R", "from the start", replay);
  button("next", "J", "the next text", () => go(1));
  bar.append(node("span", "gap"));
  const judges = model.get("judges");
  if (judges) {
    button("keep", "Y", "keep this text and go on", () => decide("keep"), "keep");
    REASONS.forEach((r, i) => button(r, String(i + 1), `drop this text: ${r}`, () => decide("drop", r), "drop"));
    button("undo", "U", "undo your last decision", () => decide("undo"), "undo");
  }

  const field = (type, label, title) => {
    const box = node("label", "", "");
    const input = node("input");
    input.type = type;
    box.title = title;
    if (type === "checkbox") box.append(input, document.createTextNode(label));
    else box.append(document.createTextNode(label), input);
    options.append(box);
    return input;
  };
  const auto = field("checkbox", "play automatically", "start playing as soon as a text is shown");
  auto.checked = judges;
  const note = field("text", "note", "goes with the next decision; Enter returns to the keys");
  if (!judges) note.parentElement.remove();
  const chooser = (label, entries, act) => {
    const box = node("label", "", label);
    const select = node("select");
    for (const [value, name] of entries) select.append(new Option(name, value));
    select.addEventListener("change", () => { act(select.value); root.focus({ preventScroll: true }); });
    box.append(select);
    options.append(box);
    return select;
  };
  chooser("speed", [["1", "1 ×"], ["1.25", "1.25 ×"], ["1.5", "1.5 ×"], ["0.75", "0.75 ×"]], (v) => { audio.defaultPlaybackRate = audio.playbackRate = Number(v); });
  const colours = chooser("colour", Object.entries(MEASURES), (v) => { measure = v; paintText(); draw(); });
  const legend = node("span", "legend");
  options.append(legend);

  const shade = (value) => {
    if (value === null || value === undefined) return null;
    return 0.92 * Math.sqrt(Math.min(1, value / (model.get("top") || 1)));
  };
  const colour = (value) => { const a = shade(value); return a === null ? null : `rgba(${VERMILION},${a.toFixed(3)})`; };

  function paintHead() {
    head.replaceChildren();
    const queue = model.get("queue");
    if (!shown) { head.append(node("span", "place", queue.message || "Nothing in this queue.")); return; }
    head.append(node("span", "place", `${shown.index + 1} / ${queue.total}`));
    const facts = [
      ["cluster", shown.cluster_id === null ? "–" : `${shown.cluster_id} ${shown.terms || ""}`], ["domain", shown.domain || "–"],
      ["D", fixed(shown.d)], ["M", fixed(shown.m)], ["F", fixed(shown.f)],
      ["CER", fixed(shown.cer)], ["voice", shown.voice ? `${shown.tts} ${shown.voice}` : "not spoken"],
      ["seconds", fixed(shown.duration_s, 1)],
    ];
    for (const [k, v] of facts) {
      const pair = node("span", "fact");
      pair.append(node("i", "", k), document.createTextNode(v));
      head.append(pair);
    }
    for (const flag of shown.flags || []) head.append(node("span", "flag", flag));
  }

  function paintText() {
    text.replaceChildren();
    legend.replaceChildren();
    if (!shown) return;
    // Words are the outer layer (what is under the playhead), tokens the inner one (what diverges).
    const cuts = new Set([0, shown.text.length]);
    for (const t of shown.tokens) { cuts.add(t.char_start); cuts.add(t.char_end); }
    for (const w of shown.words) { cuts.add(w[0]); cuts.add(w[1]); }
    const sorted = [...cuts].filter((c) => c >= 0 && c <= shown.text.length).sort((a, b) => a - b);
    const owner = (list, at, start, end) => list.findIndex((x) => start(x) <= at && at < end(x));
    for (let i = 0; i + 1 < sorted.length; i++) {
      const [a, b] = [sorted[i], sorted[i + 1]];
      const span = node("span", "", shown.text.slice(a, b));
      const t = owner(shown.tokens, a, (x) => x.char_start, (x) => x.char_end);
      const w = owner(shown.words, a, (x) => x[0], (x) => x[1]);
      if (t >= 0) {
        const c = colour(shown.tokens[t][measure]);
        if (c) span.style.background = c;
        span.dataset.token = t;
      }
      if (w >= 0) span.dataset.word = w;
      text.append(span);
    }
    legend.append(document.createTextNode("0 "), node("span", "ramp"), document.createTextNode(` ${fixed(model.get("top"), 1)} nats`));
  }

  function paintSaid() {
    said.replaceChildren();
    if (!shown) return;
    for (const s of shown.said) {
      const what = s.verdict === "drop" ? `dropped: ${s.reason || "no reason given"}` : s.verdict;
      said.append(node("span", s.verdict, `${s.reviewer} ${what}`));
    }
    if (shown.message) said.append(node("span", "message", shown.message));
  }

  function draw() {
    const width = Math.max(320, stage.clientWidth || 640), height = HEIGHT.wave + HEIGHT.ribbon + HEIGHT.axis;
    const scale = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    const g = canvas.getContext("2d");
    const style = getComputedStyle(root);
    g.setTransform(scale, 0, 0, scale, 0, 0);
    g.clearRect(0, 0, width, height);
    g.font = "11px system-ui, sans-serif";
    rects = [];
    if (!shown || !duration) {
      g.fillStyle = style.color;
      g.globalAlpha = 0.6;
      g.fillText(shown ? "No sound yet." : "", 8, HEIGHT.wave / 2);
      g.globalAlpha = 1;
      return;
    }
    const x = (s) => (s / duration) * width;
    const now = audio.currentTime;
    if (peaks) {
      const mid = HEIGHT.wave / 2;
      for (let i = 0; i < peaks.length; i++) {
        const px = (i / peaks.length) * width;
        g.fillStyle = px <= x(now) ? "#0072B2" : style.color;
        g.globalAlpha = px <= x(now) ? 0.9 : 0.45;
        const h = Math.max(1, peaks[i] * (HEIGHT.wave - 6));
        g.fillRect(px, mid - h / 2, Math.max(1, width / peaks.length - 0.5), h);
      }
      g.globalAlpha = 1;
    }
    const top = HEIGHT.wave + 2;
    g.strokeStyle = style.color;
    shown.tokens.forEach((t, i) => {
      if (t.start_s === null || t.end_s === null) return;
      const [a, b] = [x(t.start_s), x(t.end_s)];
      const c = colour(t[measure]);
      if (c) { g.fillStyle = c; g.fillRect(a, top, Math.max(1, b - a - 1), HEIGHT.ribbon - 4); }
      g.globalAlpha = i === hovered ? 1 : 0.25;
      g.strokeRect(a + 0.5, top + 0.5, Math.max(1, b - a - 2), HEIGHT.ribbon - 5);
      g.globalAlpha = 1;
      rects.push([a, b, i]);
    });
    if (!shown.tokens.length) {
      g.fillStyle = style.color;
      g.globalAlpha = 0.6;
      g.fillText("not scored yet: no divergence per token", 4, top + 14);
      g.globalAlpha = 1;
    }
    g.fillStyle = style.color;
    const step = [0.5, 1, 2, 5, 10, 20].find((s) => duration / s <= 10) || 30;
    for (let s = 0; s <= duration; s += step) {
      g.globalAlpha = 0.7;
      g.fillText(`${s} s`, Math.min(x(s) + 2, width - 26), height - 3);
      g.globalAlpha = 0.2;
      g.fillRect(x(s), 0, 1, height);
    }
    g.globalAlpha = 1;
    g.fillStyle = "#0072B2";
    g.fillRect(Math.min(x(now), width - 2), 0, 2, HEIGHT.wave + HEIGHT.ribbon);
  }

  function follow() {
    cancelAnimationFrame(frame);
    const now = audio.currentTime;
    const word = shown ? shown.words.findIndex((w) => w[2] <= now && now < w[3]) : -1;
    for (const span of text.children) span.classList.toggle("now", !audio.paused && word >= 0 && Number(span.dataset.word) === word);
    root.dataset.word = word;
    draw();
    if (!audio.paused && root.isConnected) frame = requestAnimationFrame(follow);
  }
  for (const event of ["play", "pause", "ended", "seeked"]) {
    audio.addEventListener(event, () => {
      root.dataset.state = audio.paused ? "paused" : "playing";
      playButton.lastChild.textContent = audio.paused ? "play" : "pause";
      follow();
    });
  }

  async function sound() {
    const bytes = model.get("audio");
    audio.pause();
    if (url) URL.revokeObjectURL(url);
    url = peaks = null;
    duration = 0;
    if (!bytes || !bytes.byteLength) { audio.removeAttribute("src"); draw(); return; }
    const data = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    url = URL.createObjectURL(new Blob([data], { type: "audio/flac" }));
    audio.src = url;
    const mine = url;
    try {
      const decoded = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(data.slice(0));
      if (mine !== url) return; // another text has come up meanwhile
      duration = decoded.duration;
      const samples = decoded.getChannelData(0), n = 480, step = Math.max(1, Math.floor(samples.length / n));
      peaks = Array.from({ length: n }, (_, i) => {
        let high = 0;
        for (let k = i * step; k < Math.min(samples.length, (i + 1) * step); k++) high = Math.max(high, Math.abs(samples[k]));
        return high;
      });
      const loudest = Math.max(...peaks, 1e-3);
      peaks = peaks.map((p) => p / loudest);
      root.dataset.loaded = shown?.synthesis_id || "";
    } catch (error) {
      said.append(node("span", "message", `This recording cannot be decoded (${error.message}); salad verify names the damaged file.`));
    }
    draw();
    if (wantPlay && url === mine) { wantPlay = false; audio.play().catch(() => {}); }
  }

  function showTip(index, clientX, clientY) {
    if (index === hovered && index >= 0 && tip.style.display === "block") return;
    if (index !== hovered) { hovered = index; draw(); }
    if (index < 0) { tip.style.display = "none"; return; }
    const t = shown.tokens[index];
    tip.replaceChildren();
    const title = node("div", "token", `“${visible(t.token)}”`);
    title.append(node("small", "", ` D ${fixed(t.d)}  M ${fixed(t.m)}  F ${fixed(t.f)} nats`));
    const columns = node("div", "columns");
    const [reads, hears] = t.d === null && t.m !== null ? ["itself (text)", "itself (speech)"] : ["teacher (text)", "student (speech)"];
    for (const [side, name, list] of [["teacher", reads, t.teacher], ["student", hears, t.student]]) {
      const column = node("div", side);
      column.append(node("b", "", name));
      for (const [token, p] of list) {
        const row = node("div", "row");
        const fill = node("span", "fill");
        fill.style.width = `${Math.round(100 * p)}%`;
        row.append(fill, node("span", "name", visible(token)), node("span", "p", fixed(p)));
        column.append(row);
      }
      if (!list.length) column.append(node("div", "row", "not stored"));
      columns.append(column);
    }
    tip.append(title, columns);
    if (!t.after_speech) tip.append(node("small", "", "before the first speech span: counts for F only"));
    tip.style.display = "block";
    const box = root.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(clientX - box.left + 12, box.width - tip.offsetWidth - 8))}px`;
    tip.style.top = `${clientY - box.top + 16}px`;
  }
  canvas.addEventListener("mousemove", (e) => {
    const at = e.offsetX;
    const hit = e.offsetY >= HEIGHT.wave - 6 ? rects.find(([a, b]) => a <= at && at < b) : null;
    showTip(hit ? hit[2] : -1, e.clientX, e.clientY);
  });
  canvas.addEventListener("mouseleave", () => showTip(-1));
  canvas.addEventListener("click", (e) => {
    if (duration) { audio.currentTime = (e.offsetX / canvas.clientWidth) * duration; follow(); }
    root.focus({ preventScroll: true });
  });
  text.addEventListener("mousemove", (e) => showTip(e.target.dataset?.token === undefined ? -1 : Number(e.target.dataset.token), e.clientX, e.clientY));
  text.addEventListener("mouseleave", () => showTip(-1));
  text.addEventListener("click", () => root.focus({ preventScroll: true }));

  root.addEventListener("keydown", (e) => {
    const inField = e.composedPath().some((n) => n.tagName === "INPUT" && n.type === "text") || e.target.tagName === "SELECT";
    if (inField) {
      e.stopPropagation();
      if (e.key === "Enter" || e.key === "Escape") root.focus();
      return;
    }
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const key = e.key.toLowerCase();
    const acts = { j: () => go(1), k: () => go(-1), " ": toggle, r: replay, y: () => decide("keep"), u: () => decide("undo") };
    REASONS.forEach((r, i) => { acts[String(i + 1)] = () => decide("drop", r); });
    if (!acts[key]) return;
    e.preventDefault();
    e.stopPropagation(); // the notebook has keys of its own
    acts[key]();
  });

  function show() {
    const card = model.get("card");
    shown = card && card.sample_id ? card : null;
    if (shown && shown.d === null && shown.m !== null && measure === "d") measure = colours.value = "m"; // it has no teacher
    root.dataset.sample = shown ? shown.sample_id : "";
    hovered = -1;
    tip.style.display = "none";
    paintHead();
    paintText();
    paintSaid();
    draw();
  }
  const listeners = { "change:card": show, "change:queue": paintHead, "change:audio": sound, "change:top": show };
  for (const [event, act] of Object.entries(listeners)) model.on(event, act);
  const resized = new ResizeObserver(() => draw());
  resized.observe(stage);
  show();
  sound();
  return () => {
    audio.pause();
    cancelAnimationFrame(frame);
    resized.disconnect();
    if (url) URL.revokeObjectURL(url);
    for (const [event, act] of Object.entries(listeners)) model.off(event, act);
  };
}

export default { render };
