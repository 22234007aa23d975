// A metric over time: estimate, always-valid interval, stages side by side. Plain SVG, coloured by the style sheet.

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 50, RIGHT = 8, TOP = 16, BOTTOM = 20;

export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// points: [{at, stage, span: [estimate, low, high]}] in order of time, at in seconds since 1970; lines: [[value, class]].
export function chart(points, { title, lines, format, width = 480, height = 170 }) {
  const known = points.filter((p) => p.span[1] !== null && p.span[2] !== null);
  const root = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}, over time` });
  if (known.length === 0) {
    root.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "too few users yet"));
    return root;
  }
  const stages = split(known);
  const [bottom, top] = range(stages, lines.map(([value]) => value));
  let first = known[0].at, last = known[known.length - 1].at;
  if (last - first < 1) first = last - 1;
  const x = (at) => LEFT + ((at - first) / (last - first)) * (width - LEFT - RIGHT);
  const y = (value) => TOP + ((top - value) / (top - bottom)) * (height - TOP - BOTTOM);
  const clip = `clip-${Math.random().toString(36).slice(2)}`;
  const frame = { x: LEFT, y: TOP, width: width - LEFT - RIGHT, height: height - TOP - BOTTOM };
  root.append(svg("clipPath", { id: clip }, svg("rect", frame)));
  for (const value of ticks(bottom, top)) {
    root.append(svg("line", { class: "grid-line", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    root.append(svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)));
  }
  const drawn = svg("g", { "clip-path": `url(#${clip})` });
  for (const stage of stages) {
    const upper = stage.map((p) => `${x(p.at)},${y(p.span[2])}`);
    const lower = stage.map((p) => `${x(p.at)},${y(p.span[1])}`).reverse();
    drawn.append(svg("polygon", { class: "band", points: [...upper, ...lower].join(" ") }));
  }
  for (const [value, kind] of lines) {
    drawn.append(svg("line", { class: kind, x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
  }
  for (const stage of stages) {
    drawn.append(svg("polyline", { class: "line", points: stage.map((p) => `${x(p.at)},${y(p.span[0])}`).join(" ") }));
  }
  const newest = known[known.length - 1];
  drawn.append(svg("circle", { class: "dot", cx: x(newest.at), cy: y(newest.span[0]), r: 3.5 }));
  root.append(drawn);
  let free = 0; // names of stages must not lie on one another
  for (const stage of stages) {
    const at = x(stage[0].at);
    if (at > LEFT + 1) root.append(svg("line", { class: "stage", x1: at, x2: at, y1: TOP, y2: height - BOTTOM }));
    if (at < free || at > width - 30) continue;
    root.append(svg("text", { x: at + 2, y: TOP - 5 }, stage[0].stage));
    free = at + 8 * stage[0].stage.length + 6;
  }
  root.append(svg("text", { x: LEFT, y: height - 5 }, clock(first, last)));
  root.append(svg("text", { x: width - RIGHT, y: height - 5, "text-anchor": "end" }, clock(last, first)));
  return root;
}

// 2026-02-01 13:05:09, in the reader's own time zone.
export function local(at) {
  return new Date(at * 1000).toLocaleString("sv-SE");
}

function split(points) {
  const stages = [];
  for (const point of points) {
    const now = stages[stages.length - 1];
    if (now && now[0].stage === point.stage) now.push(point);
    else stages.push([point]);
  }
  return stages;
}

// What the newer two thirds of the newest stage hold: the first intervals of a stage, and those of small stages before, are
// so wide that nothing else would be seen. They run out of the frame.
function range(stages, values) {
  let low = Math.min(...values), high = Math.max(...values);
  const newest = stages[stages.length - 1];
  for (const { span } of newest.slice(Math.floor(newest.length / 3))) {
    low = Math.min(low, span[1]);
    high = Math.max(high, span[2]);
  }
  const margin = 0.15 * (high - low || 0.01);
  return [low - margin, high + margin];
}

function ticks(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((s) => s >= rough);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high; n++) found.push(n * step);
  return found;
}

function clock(at, other) {
  const [day, time] = local(at).split(" ");
  const told = Math.abs(at - other) < 3600 ? time : time.slice(0, 5);
  return day === local(other).split(" ")[0] ? told : `${day} ${told}`;
}
