// The chat page: one prompt, an answer from each chosen model, side by side.
//
//   key (this tab's sessionStorage) -> v1/models -> columns -> v1/chat/completions, streamed -> text, seconds, tokens
//   /?with=base     also the models of the application that this server has at /base
//   blind           two answers without names, in an order drawn by chance -> v1/votes -> names
//
// It is a client of the API like any other. Whatever a model or a person writes becomes a text node, never markup: no function
// here parses HTML, and the page's Content-Security-Policy (Trusted Types) would refuse one that did. Each model has a
// conversation of its own; answers that failed are no part of it, and a blind question stands alone. A reload forgets everything
// but the key.

const KEY = "medschool.key";
const byId = (id) => document.getElementById(id);
const [log, system, prompt, send, stop] = ["log", "system", "prompt", "send", "stop"].map(byId);
const beside = new URLSearchParams(location.search).getAll("with").filter((path) => /^[\w-]+$/.test(path));
const known = new Map(); // root and name of a model -> {root, id, version, box: its checkbox, said: messages of both sides}
let running = null; // AbortController of the answers that are being written
let follows = true; // whether the view keeps to the end of the conversation
let [frame, lastTop] = [0, 0]; // the animation frame in which it will, and where it was last

// ---- the API

/** An answer that did not come, in words. detail: the server's. waitS: seconds until it makes sense to ask again. */
class Refusal extends Error {
  constructor(words, { detail = "", status = 0, waitS = 0 } = {}) {
    super(words);
    Object.assign(this, { detail, status, waitS });
  }
}

/** Write a refusal where a person sees it. */
function tell(element, error) {
  const detail = document.createElement("small");
  detail.textContent = error?.detail ?? "";
  element.replaceChildren(...(error ? [error.message, " ", detail] : []));
}

const WORDS = {
  context_length_exceeded: "The conversation is too long for this model. Start a new chat.",
  no_store: "The vote was not kept.",
  401: "The key is not known here, or was revoked. Enter another one.",
  404: "No such model is served here; it may have been replaced. Load the page again.",
  408: "The answer took too long.",
  413: "The conversation is too large to send. Start a new chat.",
  429: "Too many requests at the moment.",
  503: "The server is not ready. Try again shortly.",
};

async function refusal(response) {
  const error = (await response.json().catch(() => null))?.error ?? {};
  const other = response.status < 500 ? "The request was refused." : "The server failed.";
  const words = WORDS[error.code] ?? WORDS[response.status] ?? other;
  const detail = [error.message, `request ${response.headers.get("x-request-id")}`].filter(Boolean).join("; ");
  const waitS = response.status === 429 ? Number(response.headers.get("retry-after")) || 1 : 0;
  return new Refusal(words, { detail, status: response.status, waitS });
}

/** A response with status 200. Throws Refusal, or the AbortError of `signal`. */
async function ask(path, options = {}) {
  const key = String.fromCharCode(...new TextEncoder().encode(sessionStorage.getItem(KEY))); // headers are bytes
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Refusal("The server cannot be reached. Check the network and try again.");
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The data of server-sent events: of each line `data: ...`, since the API writes one line an event. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

/** Chunks of one answer. Throws unless it came whole: a stream without [DONE] was cut. */
async function* chunks(model, messages, signal) {
  const body = JSON.stringify({ model: model.id, messages, stream: true, stream_options: { include_usage: true } });
  const response = await ask(`${model.root}v1/chat/completions`, { method: "POST", body, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refusal("The answer is not complete.", { detail: chunk.error.message });
    yield chunk;
  }
  throw new Refusal("The connection ended early; the answer is not complete.");
}

/** The models of one application. root: its path below this page's, "" or "base/". */
async function served(root) {
  const found = await (await ask(`${root}v1/models`)).json();
  return found.data.map(({ id, version }) => ({ root, id, version }));
}

// ---- one answer: {cell, model, version: of the weights that write it, letter: in place of its name while it is blind, text, whole}

const copyOf = (template) => byId(template).content.cloneNode(true).firstElementChild;

/** Write a model's name, and its version beside it. */
function title(element, id, version) {
  const small = document.createElement("small");
  small.textContent = version ?? "";
  element.replaceChildren(id, " ", small);
}

/** Say whose answer it is; a blind one shows no figures either. */
function label({ cell, model, version, letter }) {
  const name = letter ? `answer ${letter}` : model.id;
  title(cell.querySelector(".who"), letter ? `Answer ${letter}` : name, letter ? "" : version);
  cell.querySelector(".copy").ariaLabel = letter ? `Copy ${name}` : `Copy the answer of ${name}`;
  cell.querySelector(".numbers").hidden = Boolean(letter);
}

/** "0.21 s to the first token, 34 tokens, 12.3 tokens/s". times: ms of [asking, first piece, last piece]. */
function numbers([asked, first, last], tokens, exact) {
  if (!first) return "";
  const rate = tokens > 1 && last > first ? [`${(((tokens - 1) * 1000) / (last - first)).toFixed(1)} tokens/s`] : [];
  const waited = `${((first - asked) / 1000).toFixed(2)} s to the first token`;
  return [waited, `${exact ? "" : "about "}${tokens} token${tokens === 1 ? "" : "s"}`, ...rate].join(", ");
}

/** Stream one answer into its cell, as far as it comes. */
async function write(answer, messages, signal) {
  const { cell, model } = answer;
  const [shown, figures] = [".text", ".numbers"].map((part) => cell.querySelector(part));
  const text = new Text();
  shown.replaceChildren(text);
  figures.textContent = "waiting for the first token";
  const times = [performance.now(), 0, 0];
  let [pieces, tokens, note] = [0, 0, ""];
  try {
    for await (const chunk of chunks(model, messages, signal)) {
      const choice = chunk.choices[0];
      if (choice?.delta.content) {
        times[2] = performance.now();
        times[1] ||= times[2];
        text.appendData(choice.delta.content);
        figures.textContent = numbers(times, ++pieces, false);
        keepUp();
      }
      if (choice?.finish_reason === "length") note = "cut at the greatest length";
      tokens = chunk.usage?.completion_tokens ?? tokens;
      answer.version = chunk.system_fingerprint ?? answer.version;
    }
    answer.text = text.data;
    answer.whole = true;
  } catch (error) {
    note = error.name === "AbortError" ? "stopped" : pieces ? "not complete" : "";
    if (error.name === "AbortError") answer.text = text.data;
    else fail(cell, error instanceof Refusal ? error : new Refusal("The connection broke; the answer is not complete."));
  }
  figures.textContent = [numbers(times, tokens || pieces, tokens > 0), note].filter(Boolean).join(", ");
  cell.querySelector(".copy").hidden = !text.data;
  cell.ariaBusy = "false";
  label(answer);
  keepUp();
}

/** Show the end at the next frame, once: a person's scrolling, which is told just before a frame, wins. */
function keepUp() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => {
    if (follows) log.scrollTop = log.scrollHeight;
  });
}

function fail(cell, error) {
  const [fault, again] = [".fault", ".again"].map((part) => cell.querySelector(part));
  tell(fault, error);
  fault.hidden = again.hidden = false;
  countDown(again, "Try again", error.waitS);
  if (error.status === 401) leave(error);
}

/** Hold a button back for `waitS` seconds, and say for how long. */
function countDown(button, words, waitS) {
  const end = performance.now() + waitS * 1000;
  const tick = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    button.disabled = left > 0;
    button.textContent = left > 0 ? `${words} in ${left} s` : words;
    if (left > 0) setTimeout(tick, 200);
  };
  tick();
}

async function copy(shown, button) {
  let done = "Copied";
  try {
    await navigator.clipboard.writeText(shown.textContent);
  } catch {
    getSelection().selectAllChildren(shown); // there is no clipboard without HTTPS or loopback
    done = "Selected: press Ctrl+C";
  }
  button.textContent = byId("told").textContent = done;
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

// ---- one turn

/** The messages of a question behind what was said before. */
function messagesOf(question, said) {
  const first = system.value.trim() ? [{ role: "system", content: system.value.trim() }] : [];
  return [...first, ...said, { role: "user", content: question }];
}

/** An answer with its cell; `fill` has it written. ended: called when that was. */
function answerOf(model, question, letter, ended) {
  const cell = copyOf("answer-template");
  const [again, copying] = [".again", ".copy"].map((part) => cell.querySelector(part));
  const answer = { cell, model, version: model.version, letter, text: "", whole: false };
  const said = letter ? [] : model.said; // a new chat has a new one
  answer.fill = async (signal) => {
    cell.ariaBusy = "true";
    again.hidden = cell.querySelector(".fault").hidden = true;
    await write(answer, messagesOf(question, said), signal);
    if (answer.text) said.push({ role: "user", content: question }, { role: "assistant", content: answer.text });
  };
  copying.addEventListener("click", () => copy(cell.querySelector(".text"), copying));
  again.addEventListener("click", () => run([answer]).then(ended));
  label(answer);
  return answer;
}

/** Have answers written at the same time, until all are done or the person stops them. */
async function run(answers) {
  if (running) return;
  running = new AbortController();
  send.hidden = true;
  stop.hidden = false;
  prompt.focus();
  await Promise.all(answers.map(({ fill }) => fill(running.signal)));
  running = null;
  send.hidden = false;
  stop.hidden = true;
}

function submit() {
  const question = prompt.value.trim();
  if (running || !question) return;
  for (const old of log.querySelectorAll(".again, .vote:has(button)")) old.remove(); // a turn can be mended until the next one
  const chosen = [...known.values()].filter((model) => model.box.checked);
  const isBlind = byId("blind").checked && chosen.length > 1;
  const turn = copyOf("turn-template");
  const ended = () => isBlind && offer(turn, answers, messages);
  const messages = messagesOf(question, []);
  const models = isBlind ? drawn(chosen) : chosen;
  const answers = models.map((model, place) => answerOf(model, question, isBlind ? "AB"[place] : "", ended));
  turn.querySelector(".question").textContent = question;
  turn.querySelector(".answers").append(...answers.map(({ cell }) => cell));
  log.append(turn);
  prompt.value = "";
  follows = true;
  keepUp();
  run(answers).then(ended);
}

function fresh() {
  running?.abort();
  for (const model of known.values()) model.said = [];
  log.replaceChildren();
  prompt.focus();
}

// ---- blind votes

/** The first two models, in an order drawn by chance. */
function drawn([one, other]) {
  return crypto.getRandomValues(new Uint8Array(1))[0] % 2 ? [one, other] : [other, one];
}

/** Ask which answer is better, once both are whole. */
function offer(turn, answers, messages) {
  const vote = turn.querySelector(".vote");
  vote.hidden = !answers.every(({ whole }) => whole);
  for (const button of vote.querySelectorAll("button"))
    button.onclick = () => cast(vote, answers, { messages, better: button.value });
  keepUp();
}

/** Have a vote kept, then show whose answers they were. */
async function cast(vote, answers, { messages, better }) {
  const told = vote.querySelector("span");
  const texts = answers.map(({ model, version, text }) => ({ model: model.id, version: version ?? "unknown", text }));
  try {
    await ask("v1/votes", { method: "POST", body: JSON.stringify({ messages, answers: texts, better }) });
  } catch (error) {
    tell(told, error);
    return;
  }
  for (const button of vote.querySelectorAll("button")) button.remove();
  const said = { first: "the first answer is better", second: "the second answer is better", neither: "no difference" };
  told.textContent = `Kept: ${said[better]}.`;
  for (const answer of answers) label(Object.assign(answer, { letter: "" }));
  prompt.focus();
}

// ---- models and key

function unmet(place) {
  const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: place < 2 });
  return { box, said: [] };
}

/** Show what is served; conversations with models that are known go on. The first two answer unless others are chosen. */
function list(models) {
  const before = new Map(known);
  known.clear();
  const labels = models.map(({ root, id, version }, place) => {
    const model = Object.assign(before.get(root + id) ?? unmet(place), { root, id, version });
    known.set(root + id, model);
    model.box.hidden = models.length < 2;
    const [row, words] = [document.createElement("label"), document.createElement("span")];
    title(words, id, version);
    row.append(model.box, words);
    return row;
  });
  byId("models").replaceChildren(byId("models").firstElementChild, ...labels);
  byId("blind-row").hidden = models.length < 2;
  document.title = `${models.map((model) => model.id).join(", ")} - medschool chat`;
}

/** Enter with the key of this tab. */
async function enter() {
  const connect = byId("enter").querySelector("button");
  connect.disabled = true;
  tell(byId("key-fault"));
  try {
    list((await Promise.all(["", ...beside.map((path) => `${path}/`)].map(served))).flat());
    byId("key").value = "";
    countDown(connect, "Connect", 0);
    show(true);
  } catch (error) {
    if (error.status === 401) sessionStorage.removeItem(KEY);
    byId("key").value = sessionStorage.getItem(KEY) ?? "";
    show(false, error instanceof Refusal ? error : new Refusal("The server's answer can not be read."));
    countDown(connect, "Connect", error.waitS ?? 0);
  }
}

function leave(error) {
  running?.abort();
  sessionStorage.removeItem(KEY);
  show(false, error);
}

function show(talking, error) {
  byId("enter").hidden = talking;
  for (const id of ["models", "tools", "log", "ask"]) byId(id).hidden = !talking;
  tell(byId("key-fault"), error);
  (talking ? prompt : byId("key")).focus();
}

// ---- what a person does

byId("enter").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  enter();
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
byId("models").addEventListener("change", (event) => {
  if (![...known.values()].some((model) => model.box.checked)) event.target.checked = true; // at least one answers
});
byId("blind").addEventListener("change", () => (byId("blind-hint").hidden = !byId("blind").checked));
byId("fresh").addEventListener("click", fresh);
byId("leave").addEventListener("click", () => {
  fresh();
  leave();
});
stop.addEventListener("click", () => {
  running?.abort();
  prompt.focus(); // the button goes away
});
log.addEventListener("scroll", () => {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  follows = isAtEnd || (follows && log.scrollTop >= lastTop); // text may have grown since; only a person moves up
  lastTop = log.scrollTop;
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) running?.abort();
});

if (sessionStorage.getItem(KEY)) enter();
else show(false);
