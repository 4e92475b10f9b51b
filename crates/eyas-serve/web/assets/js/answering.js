/**
 * Asks a question and follows its answer to the end, whatever the end is.
 */
import { ApiError } from "./api.js";
import { complete } from "./completion.js";
import { messagesFor } from "./conversations.js";
import { currentLanguage } from "./i18n.js";

/**
 * @param {import("./app.js").App} app
 * @param {{model: string, before: import("./conversations.js").Turn[], question: string}} asked
 * @param {AbortSignal} signal stops the answer; what came until then stays
 * @param {(answer: import("./conversations.js").Answer) => void} grows
 * @returns {Promise<{answer: import("./conversations.js").Answer, error: ApiError | null}>}
 */
export async function answer(app, { model, before, question }, signal, grows) {
  /** @type {import("./conversations.js").Answer} */
  const answer = { text: "", model, finish: "" };
  const { settings } = app;
  const messages = messagesFor(before, question, settings.system);
  const request = {
    model,
    messages,
    settings,
    language: currentLanguage(),
    region: app.care.region,
    consent: app.consent,
  };
  try {
    for await (const piece of complete(request, signal)) {
      if (piece.type === "text") answer.text += piece.text;
      else if (piece.type === "care") answer.care = piece.care;
      else if (piece.type === "replaced") answer.replaced = true;
      else answer.finish = piece.reason;
      grows(answer);
    }
    return { answer, error: null };
  } catch (error) {
    if (signal.aborted) return { answer: { ...answer, finish: "stopped" }, error: null };
    const known = error instanceof ApiError ? error : new ApiError("broken", `${error}`);
    return { answer: { ...answer, finish: "error" }, error: known };
  }
}
