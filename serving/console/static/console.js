// The console: asks for the state every two seconds and shows it. All text from the service enters as text nodes.

import { chart, local, svg } from "./charts.js";

const EVERY_MS = 2000;
const STATUS = {
  better: ["good", "✓ better"], worse: ["bad", "✗ worse"], ok: ["good", "✓ holds"], breach: ["bad", "✗ breached"],
  undecided: ["wait", "… undecided"], too_early: ["", "… too early"],
};
const MOVES = {
  wait: ["wait", "waiting"], advance: ["good", "next stage"], promote: ["good", "promotion"],
  rollback: ["bad", "rollback"], ready: ["good", "ready for promotion by hand"],
};
const GUARDRAILS = { fallback: "Fallback answers", error: "Model errors", p99: "Slow answers" };
const token = document.querySelector("meta[name=form-token]").content;
const $ = (id) => document.getElementById(id);
const shown = {}; // what each part shows now, so that only what changed is drawn again
let points = [], known = "", last = null, heardAt = 0;

// --- small helpers ---------------------------------------------------------------------------------------------------

function h(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== false) node.setAttribute(key, value);
  node.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== ""));
  return node;
}
const digits = (value) => (Math.abs(value) < 0.0995 ? 2 : 1);
const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits(value))} %`);
const signed = (value) => {
  if (value === null || value === undefined) return "–";
  const text = percent(Math.abs(value));
  return `${parseFloat(text) === 0 ? "" : value > 0 ? "+" : "−"}${text}`;
};
const axis = (value) => { const p = 100 * value; return `${p > 0 ? "+" : p < 0 ? "−" : ""}${parseFloat(Math.abs(p).toPrecision(2))} %`; };
const count = (value) => (value ?? 0).toLocaleString("en-GB");
const time = (at) => (at ? local(at) : "?");
const short = (sha) => h("code", { title: sha || "" }, (sha || "–").slice(0, 12));
const pill = ([kind, text]) => h("span", { class: `pill ${kind}` }, text);
const soft = (...text) => h("p", { class: "soft" }, ...text);

function span(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

// Draw a part again where what it shows has changed.
function part(id, data, draw) {
  const text = JSON.stringify(data);
  if (shown[id] === text) return;
  shown[id] = text;
  $(id).replaceChildren(...[draw()].flat());
}

function metricPoints(name) {
  return points.filter((p) => p[2][name]).map((p) => ({ at: p[0], stage: p[1], span: p[2][name] }));
}

function plot(id, name, options) {
  const width = Math.max(280, Math.min($(id).clientWidth || 480, 560));
  return chart(metricPoints(name), { width, height: 170, format: axis, ...options });
}

// --- the parts -------------------------------------------------------------------------------------------------------

function notices(state) {
  const told = [];
  if (state.redis) told.push(["bad", `${state.redis}. What replicas served last they serve on; after 10 seconds without a plan the champion alone.`]);
  else if (!state.plan) told.push(["", "There is no rollout plan yet: the service answers with the bundle it was started with. degre bundle activate names the first champion."]);
  if (state.running && !state.controller) {
    const since = state.look ? `Figures stand still since ${time(Date.parse(state.look.at) / 1000)}.` : "There are no figures yet.";
    told.push(["", `No controller is running: nothing advances, and nothing is rolled back by itself. ${since} degre rollout run starts one.`]);
  }
  for (const r of state.replicas) if (r.state === "refuses") told.push(["bad", `Replica ${r.replica} refuses bundle ${r.refused.slice(0, 12)}: ${r.refused_because}`]);
  if (!state.redis && !state.replicas.length) told.push(["", "No replica reports to Redis. Replicas report while they follow a plan."]);
  if (state.gaps.length) told.push(["bad", `The history has gaps before versions ${state.gaps.join(", ")}.`]);
  part("notices", told, () => told.map(([kind, text]) => h("p", { class: `notice ${kind}` }, text)));
}

function now(state) {
  const e = state.experiment, look = state.look;
  $("abort").hidden = !state.running;
  const about = !e ? (state.redis ? "Nothing can be said while Redis is away." : "There has been no experiment yet.")
    : state.running ? `At ${e.stages[e.stage].name} for ${span(state.at - e.since)}${e.held ? ", held by hand" : ""}. Plan version ${state.plan.version}.`
    : `No experiment is running. The last one ${state.ended ? `was ${state.ended.how} at ${state.ended.stage}, ${time(state.ended.at)}` : "is over"}.`;
  $("about").textContent = about;
  $("now-title").textContent = e ? e.id : "Experiment";
  const promoted = state.ended && state.ended.how === "promoted";
  part("stages", [e && e.stages, e && e.stage, state.running, state.ended && state.ended.how], () => (e ? e.stages : []).map((stage, i) =>
    h("li", { class: i < e.stage || promoted ? "done" : !state.running && i === e.stage ? "stopped" : "", "aria-current": state.running && i === e.stage ? "step" : null }, stage.name)));
  part("next", [state.running, state.ended, look && [look.next, look.reason, look.waiting_for]], () => {
    if (!state.running) return state.ended ? soft(`${state.ended.by}: ${state.ended.why || "no reason given"}`) : [];
    if (!look) return soft("The machine has not looked yet.");
    return [
      h("p", { class: "next" }, pill(MOVES[look.next] || ["", look.next]), h("span", {}, look.reason)),
      look.waiting_for.length ? h("ul", { class: "waits soft" }, look.waiting_for.map((text) => h("li", {}, `waits for ${text}`))) : "",
    ].filter(Boolean);
  });
}

function traffic(state) {
  const arms = state.plan ? state.plan.arms : [], look = state.running ? state.look : null, rate = state.running ? state.rate : null;
  part("traffic", [arms, look && [look.users, look.requests], rate], () => {
    if (!arms.length) return soft("No plan, no arms.");
    const challenger = arms.length > 1 ? arms[1].weight : 0;
    return [
      h("div", { class: "bar", role: "img", "aria-label": `challenger ${percent(challenger)} of the users` },
        svg("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none" },
          svg("rect", { class: "champion", x: 0, width: 100 * (1 - challenger), height: 1 }),
          svg("rect", { class: "challenger", x: 100 * (1 - challenger), width: 100 * challenger, height: 1 }))),
      ...arms.map((arm) => h("div", { class: "arm" },
        h("h3", {}, h("span", { class: `key ${arm.name}` }), arm.name, " ", h("span", { class: "soft" }, `${percent(arm.weight)} of the users`)),
        h("div", { class: "soft" }, short(arm.bundle), " ", arm.folder),
        look ? facts([
          ["users in this stage", count(look.users[arm.name])],
          ["answers counted", count(look.requests[arm.name])],
          ["answers a second", rate ? (rate[arm.name] ?? 0).toFixed(rate[arm.name] < 10 ? 2 : 0) : "–"],
        ]) : "")),
    ];
  });
}

function primary(state) {
  const e = state.experiment, look = state.look, arm = look && look.results ? look.results.arms[0] : null;
  $("primary-title").textContent = e ? `${e.primary.objective} a request` : "Primary metric";
  part("primary", [e && [e.id, e.primary], arm && arm.primary, look && [look.stage, look.controlled], points.length, $("primary").clientWidth], () => {
    if (!e) return soft("Nothing is measured without an experiment.");
    const least = e.primary.smallest_effect;
    const drawing = plot("primary", "primary", { title: `effect on ${e.primary.objective}`, lines: [[0, "zero"], [least, "bound"]] });
    const legend = soft(`Band: always-valid interval, each stage on its own data. Dotted: the smallest effect worth having, ${signed(least)}.`);
    if (!look) return soft("No controller has looked yet.");
    if (!look.controlled) return [soft(look.share === 0 ? "In shadow nobody sees the challenger’s lists." : "All users have the challenger: nobody is left to compare with, and the metric is not judged."), metricPoints("primary").length ? [drawing, legend] : []].flat();
    if (!arm) return soft("No user of the challenger yet.");
    const p = arm.primary, early = p.status === "too_early";
    return [
      h("p", { class: "figure" }, early ? "–" : signed(p.effect)),
      h("p", {}, pill(STATUS[p.status]), " ", h("span", { class: "soft num" }, early ? `from ${count(e.min_users)} users of each arm on` : `${signed(p.low)} … ${signed(p.high)}`)),
      drawing, legend,
      facts([["champion", p.control_value?.toPrecision(4) ?? "–"], ["challenger", p.treatment_value?.toPrecision(4) ?? "–"], ["p", p.p_value.toPrecision(2)],
        ["sample ratio", look.results.srm.mismatch ? "MISMATCH" : "as planned"]]),
    ];
  });
}

function guardrails(state) {
  const e = state.experiment, look = state.look, arm = look && look.results ? look.results.arms[0] : null;
  part("guardrails", [e && [e.id, e.guardrails], arm && arm.guardrails, points.length, $("guardrails").clientWidth], () => {
    if (!e) return soft("None without an experiment.");
    return e.guardrails.map((planned) => {
      const g = arm ? arm.guardrails.find((found) => found.metric === planned.metric) : null;
      const name = (GUARDRAILS[planned.metric] || planned.metric) + (planned.bound_ms ? `, over ${planned.bound_ms} ms` : "");
      const ceiling = g && g.kind === "ceiling", early = !g || g.status === "too_early";
      const spans = metricPoints(planned.metric + (ceiling ? ":share" : ""));
      return h("div", {},
        h("h3", {}, name), h("p", {}, pill(g ? STATUS[g.status] : ["", "… not yet"])),
        h("p", { class: "figure small" }, early ? "–" : `${ceiling ? percent(g.harm) : signed(g.harm)}`),
        soft(early ? `bound ${signed(planned.max_rise)} of the requests`
          : ceiling ? `of the requests, at most ${percent(g.upper)}; ceiling ${percent(g.bound)}`
          : `of the requests, ${signed(g.lower)} … ${signed(g.upper)}; bound ${signed(g.bound)}`),
        spans.length ? chart(spans, { width: 300, height: 130, format: axis, title: name, lines: [[0, "zero"], [g ? g.bound : planned.max_rise, "bound"]] }) : "");
    });
  });
}

function shadow(state) {
  const s = state.look ? state.look.shadow : null;
  part("shadow", s, () => {
    if (!s || !s.lists) return soft("The challenger has been asked for no list in shadow.");
    const of = (n) => `${count(n)} (${percent(n / Math.max(s.ok + s.failed + s.late, 1))})`;
    return [
      facts([["lists", count(s.lists)], ["failed", of(s.failed)], ["late", of(s.late)], ["dropped", count(s.dropped)],
        ["same list", percent(s.same)], ["same first item", percent(s.first)], ["items shared", percent(s.overlap)],
        ["median, p99", s.p50_ms ? `≤ ${s.p50_ms}, ${s.p99_ms} ms` : "–"]]),
    ];
  });
}

function judge(state) {
  const j = state.look ? state.look.judge : null;
  part("judge", [j, state.look === null, points.length, $("judge").clientWidth], () => {
    if (!state.look) return soft("No controller has looked yet.");
    if (!j) return soft("No judge has valued the lists made in shadow. The controller takes one by ", h("code", {}, "degre rollout run --judge FOLDER"), ".");
    const least = state.experiment.primary.smallest_effect;
    return [
      h("p", { class: "figure small" }, j.low === null ? "–" : signed(j.effect)),
      soft(j.low === null ? "too few users for an interval" : `${signed(j.low)} … ${signed(j.high)} of a list’s value, as an independent judge sees it, one list a user; it decides nothing`),
      facts([["champion’s list", j.champion.toPrecision(4)], ["challenger’s list", j.challenger.toPrecision(4)], ["users", count(j.users)]]),
      metricPoints("judge").some((p) => p.span[1] !== null) ? plot("judge", "judge", { title: "judged value of a list", height: 130, lines: [[0, "zero"], [least, "bound"]] }) : "",
    ].filter(Boolean);
  });
}

function replicas(state) {
  part("replicas", state.replicas, () => {
    if (!state.replicas.length) return soft("None reports.");
    const kinds = { "as planned": ["good", "✓ as planned"], loading: ["wait", "… loading"], behind: ["wait", "! behind"], refuses: ["bad", "✗ refuses"] };
    const cell = (name, ...value) => h("td", { "data-name": name }, h("span", {}, ...value));
    return h("table", {},
      h("thead", {}, h("tr", {}, ["replica", "state", "version", "champion", "challenger", "stage"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, state.replicas.map((r) => h("tr", {},
        cell("replica", h("span", { class: "mono" }, r.replica)),
        cell("state", pill(kinds[r.state] || ["bad", `✗ ${r.state}`])),
        cell("version", `${r.version}`), cell("champion", short(r.champion)),
        cell("challenger", r.challenger ? short(r.challenger) : "–"), cell("stage", r.stage || "–")))));
  });
}

function history(state) {
  part("history", state.history, () => state.history.length ? state.history.map((c) =>
    h("li", {},
      h("span", { class: "soft num" }, time(c.at)),
      h("span", {}, h("strong", {}, c.action), c.stage ? ` ${c.stage}` : ""),
      h("span", {}, h("span", { class: "soft" }, `version ${c.version}, ${c.by || "unknown"}${c.experiment ? `, ${c.experiment}` : ""}`), h("br"), c.why)))
    : [h("li", { class: "soft" }, "Empty.")]);
}

function show(state) {
  last = state;
  for (const draw of [notices, now, traffic, primary, guardrails, shadow, judge, replicas, history]) draw(state);
}

// --- asking and doing ------------------------------------------------------------------------------------------------

function live(on, text) {
  $("live").className = `live ${on ? "on" : "off"}`;
  if ($("live").textContent !== text) $("live").textContent = text;
}

async function ask() {
  const after = points.length ? points[points.length - 1][0] : 0;
  try {
    const answer = await fetch(`/console/state?experiment=${encodeURIComponent(known)}&after=${after}`, { signal: AbortSignal.timeout(8000) });
    if (answer.status === 401) return location.assign("/console/login");
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const state = await answer.json(), id = state.experiment ? state.experiment.id : "";
    if (id === known) points = [...points, ...state.points.filter((p) => p[0] > after)];
    else if (!state.redis) points = state.points;
    if (!state.redis) known = id;
    heardAt = Date.now();
    live(!state.redis, state.redis ? "Redis is away" : "live");
    show(state);
  } catch (error) {
    live(false, heardAt ? `no answer since ${new Date(heardAt).toLocaleTimeString("en-GB")}` : "the service does not answer");
  }
}

async function turn() {
  if (!document.hidden) await ask();
  setTimeout(turn, EVERY_MS);
}

$("abort").addEventListener("click", () => {
  $("dialog-id").textContent = last.experiment.id;
  $("dialog-told").hidden = true;
  $("dialog").showModal();
  $($("name").value ? "reason" : "name").focus();
});
$("cancel").addEventListener("click", () => $("dialog").close());
$("abort-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("confirm").disabled = true;
  try {
    const answer = await fetch("/console/abort", {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Form-Token": token },
      body: JSON.stringify({ experiment: $("dialog-id").textContent, name: $("name").value, reason: $("reason").value }),
    });
    if (!answer.ok) throw new Error((await answer.json()).detail);
    $("dialog").close();
    $("reason").value = "";
    await ask();
  } catch (error) {
    $("dialog-told").textContent = `Not aborted: ${error.message}`;
    $("dialog-told").hidden = false;
  } finally {
    $("confirm").disabled = false;
  }
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
addEventListener("resize", () => { if (last) show(last); });
turn();
