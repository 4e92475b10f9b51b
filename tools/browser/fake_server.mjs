/**
 * A server that speaks the page's contract without a model: the fixture of the browser tests.
 *
 *     node fake_server.mjs [port]
 *
 * What it does depends on words in the question:
 * `slow` streams for some seconds, `slow long` many paragraphs, `silent` waits before its first word, `once` does so from
 * the second time on,
 * `markdown`, `table`, `hostile` and `wide` answer with such text, `مرحبا` in Arabic,
 * `busy` is refused with 429 twice, `restart` with 503, `long question` as too long, `fail` with 500, `vanish` closes the
 * connection, `break` closes it in the middle of the answer, `cut` ends at the length, `checked` says that a part was replaced,
 * `are you human` is answered with the reminder first, and `end my life` is answered with care.
 */
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { extname, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import * as fixtures from "./fixtures.mjs";

const WEB = new URL("../../crates/eyas-serve/web/", import.meta.url);
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
};
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data:",
  "font-src 'self'",
  "connect-src 'self'",
  "manifest-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join("; ");

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/**
 * Starts the server on a free port of this machine, or the one given.
 * @param {{port?: number, page?: (page: any) => any, key?: string}} [options] `page` changes what `/api/page` says
 */
export async function startFakeServer({ port = 0, page = (p) => p, key } = {}) {
  /** @type {{path: string, body?: any, aborted?: boolean}[]} */
  const requests = [];
  const refusals = new Map();
  const asked = new Set();
  const server = createServer((request, response) => {
    handle(request, response).catch((error) => {
      response.writeHead(500).end(`${error}`);
    });
  });

  async function handle(request, response) {
    const url = new URL(request.url, "http://localhost");
    const entry = { path: url.pathname + url.search };
    requests.push(entry);
    const language = url.searchParams.get("language");
    const json = (value) => send(response, 200, value);
    if (url.pathname === "/v1/chat/completions") return complete(request, response, entry);
    if (url.pathname === "/api/page") return json(page(fixtures.page()));
    if (url.pathname === "/api/care/regions") return json(fixtures.regions(language));
    if (url.pathname === "/api/care/helplines")
      return json(fixtures.helplines(url.searchParams.get("region"), language));
    if (url.pathname === "/api/care/reminders") return json(fixtures.reminders(language));
    if (url.pathname === "/api/care/questionnaires") return json({ questionnaires: fixtures.questionnaires(language) });
    return file(url.pathname, response);
  }

  async function complete(request, response, entry) {
    const parts = [];
    for await (const part of request) parts.push(part);
    entry.body = JSON.parse(Buffer.concat(parts).toString());
    if (key && request.headers.authorization !== `Bearer ${key}`) {
      return refuse(response, 401, "invalid_api_key", "a key is needed");
    }
    const { model, messages, eyas = {} } = entry.body;
    const question = messages.at(-1).content;
    if (question.includes("vanish")) return request.socket.destroy();
    if (question.includes("fail")) return refuse(response, 500, "internal_error", "the engine stumbled");
    if (question.includes("long question"))
      return refuse(response, 400, "context_length_exceeded", "the prompt has 5000 tokens; at most 2047 fit");
    if (question.includes("restart")) return refuse(response, 503, "shutting_down", "the server is stopping");
    if (question.includes("busy")) {
      const count = (refusals.get(question) ?? 0) + 1;
      refusals.set(question, count);
      if (count <= 2) return refuse(response, 429, "queue_full", "the queue is full", { "Retry-After": "2" });
    }
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
    response.on("close", () => {
      entry.aborted = !response.writableFinished;
    });
    const chunk = (delta, finish = null, extra) =>
      response.write(
        `data: ${JSON.stringify({ object: "chat.completion.chunk", model, choices: [{ index: 0, delta, finish_reason: finish }], ...(extra ? { eyas: extra } : {}) })}\n\n`,
      );
    response.write(": hello\n\n");
    if (question.includes("silent")) await wait(12_000);
    if (question.includes("once") && asked.has(question)) await wait(12_000);
    asked.add(question);
    const crisis = /end my life|想結束生命/.test(question) && fixtures.careAnswer(eyas.region, eyas.language);
    const human = question.includes("are you human");
    const first = { ...(crisis ? { care: crisis.care } : {}), ...(human ? { reminder: "asked" } : {}) };
    chunk({ role: "assistant", content: "" }, null, first);
    const said = human ? `${fixtures.reminders(eyas.language).asked}\n\n` : "";
    const text = said + (crisis ? crisis.text : fixtures.answerTo(model, question, eyas.language));
    const pieces = text.match(/\s*\S+\s*?|\s+/gu) ?? [];
    const pause = question.includes("slow") ? 60 : question.includes("break") ? 20 : 2;
    for (const [i, piece] of pieces.entries()) {
      if (response.destroyed) return;
      if (question.includes("break") && i === 12) return request.socket.destroy();
      chunk({ content: piece });
      await wait(pause);
    }
    const extra = question.includes("checked") ? { replaced: ["dose"] } : undefined;
    chunk({}, question.includes("cut") ? "length" : "stop", extra);
    response.end("data: [DONE]\n\n");
  }

  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    requests,
    /** The bodies of the questions so far. */
    questions: () => requests.filter((r) => r.body).map((r) => r.body),
    /** Goes away at once, as if it had been stopped; `listen` brings it back on its port. */
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function send(response, status, value, headers = {}) {
  response.writeHead(status, { "Content-Type": "application/json", ...headers }).end(JSON.stringify(value));
}

function refuse(response, status, code, message, headers) {
  send(response, status, { error: { message, type: "error", param: null, code } }, headers);
}

async function file(path, response) {
  const wanted = path === "/" ? "index.html" : normalize(path).replace(/^\/+/, "");
  if (wanted !== "index.html" && !wanted.startsWith("assets/")) return response.writeHead(404).end();
  try {
    const body = await readFile(new URL(wanted, WEB));
    response.writeHead(200, {
      "Content-Type": TYPES[extname(wanted)] ?? "application/octet-stream",
      "Content-Security-Policy": POLICY,
      "X-Content-Type-Options": "nosniff",
      "Referrer-Policy": "no-referrer",
      "Cache-Control": "no-cache",
    });
    response.end(body);
  } catch {
    response.writeHead(404).end();
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await startFakeServer({ port: Number(process.argv[2] ?? 8090) });
  console.log(url);
}
