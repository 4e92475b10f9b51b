/**
 * One answer of a model, streamed.
 */
import { ApiError, asTrouble, request } from "./api.js";
import { SseParser } from "./sse.js";

/**
 * @typedef {{role: "system" | "user" | "assistant", content: string}} Message
 * @typedef {{model: string, messages: Message[], settings: import("./settings.js").Settings, language: string,
 *   region: string, consent: string | null}} Question
 * @typedef {{type: "text", text: string} | {type: "care", care: object}
 *   | {type: "replaced"} | {type: "finish", reason: string}} Piece
 */

/**
 * The body of a request. The server cuts what is older than `remember` turns; older ones still go along, because
 * what people said a little earlier counts for recognising a crisis.
 * @param {Question} question
 */
export function body({ model, messages, settings, language, region, consent }) {
  const eyas = { language, tidy: settings.tidy, remember: settings.remember };
  if (region) Object.assign(eyas, { region });
  if (consent) Object.assign(eyas, { consent });
  return {
    model,
    messages,
    stream: true,
    temperature: settings.temperature,
    top_p: settings.top_p,
    repetition_penalty: settings.repetition_penalty,
    max_tokens: settings.max_tokens,
    ...(settings.seed === null ? {} : { seed: settings.seed }),
    eyas,
  };
}

/**
 * Asks, and gives the answer in pieces.
 * @param {Question} question
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Piece>}
 */
export async function* complete(question, signal) {
  const response = await request("/v1/chat/completions", { body: body(question), signal });
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  try {
    while (true) {
      let read;
      try {
        read = await reader.read();
      } catch (error) {
        if (signal.aborted) throw error;
        throw new ApiError("broken", `${error}`);
      }
      const text = read.done ? decoder.decode() : decoder.decode(read.value, { stream: true });
      for (const { data } of parser.push(text)) {
        if (data === "[DONE]") return;
        yield* pieces(data);
      }
      if (read.done) throw new ApiError("broken", "the stream ended before the answer did");
    }
  } finally {
    // Ends the request where the caller stops early; after the end it does nothing.
    reader.cancel().catch(() => {});
  }
}

/** @param {string} data @returns {Generator<Piece>} */
export function* pieces(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ApiError("broken", "the server sent something that is not JSON");
  }
  if (chunk.error) throw asTrouble(500, chunk.error);
  const extra = chunk.eyas ?? {};
  if (extra.care) yield { type: "care", care: extra.care };
  if (extra.replaced) yield { type: "replaced" };
  const choice = chunk.choices?.[0];
  if (choice?.delta?.content) yield { type: "text", text: choice.delta.content };
  if (choice?.finish_reason) yield { type: "finish", reason: choice.finish_reason };
}
