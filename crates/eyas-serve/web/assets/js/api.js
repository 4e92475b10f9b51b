/**
 * Requests to the server that this page came from, and what can go wrong with them in terms the page can explain.
 */

/**
 * gone: no answer at all. broken: the answer stopped in the middle. busy: too many questions (429). unready: the server
 * is starting or stopping (503). too_long: the question or what is remembered does not fit. key: the operator wants a key.
 * rejected: the request was refused. failed: the server could not do it.
 * @typedef {"gone" | "broken" | "busy" | "unready" | "too_long" | "key" | "rejected" | "failed"} Trouble
 */
export class ApiError extends Error {
  /** @param {Trouble} trouble @param {string} detail @param {number} [retryAfter] seconds */
  constructor(trouble, detail, retryAfter) {
    super(detail);
    this.trouble = trouble;
    this.retryAfter = retryAfter;
  }
}

/** Kept for the page's life only, never stored. */
let key = "";
/** @param {string} value */
export const setKey = (value) => {
  key = value;
};

/**
 * @param {string} path
 * @param {{body?: unknown, signal?: AbortSignal}} [options] with a body it is a POST
 * @returns {Promise<Response>} an answer with a status of success
 */
export async function request(path, { body, signal } = {}) {
  const headers = { Accept: body ? "text/event-stream, application/json" : "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body ? JSON.stringify(body) : undefined,
      signal,
      credentials: "same-origin",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("gone", `${error}`);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/**
 * @param {string} path
 * @param {Record<string, string>} [query]
 */
export async function getJson(path, query) {
  const response = await request(query ? `${path}?${new URLSearchParams(query)}` : path);
  try {
    return await response.json();
  } catch (error) {
    throw new ApiError("broken", `${error}`);
  }
}

/** @param {Response} response */
async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy's page, or nothing: the status says enough.
  }
  return asTrouble(response.status, error, Number(response.headers.get("Retry-After")));
}

/**
 * An error in OpenAI's shape, by status and code.
 * @param {number} status
 * @param {{message?: string, code?: string | number | null, type?: string}} error
 * @param {number} [retryAfter]
 */
export function asTrouble(status, error, retryAfter) {
  const detail = error.message || `HTTP ${status}`;
  const long = status === 413 || /context_length|too_long|too_large/.test(`${error.code}`);
  if (long) return new ApiError("too_long", detail);
  if (status === 429 || error.code === "queue_full") return new ApiError("busy", detail, retryAfter || 5);
  if (status === 503 || error.code === "shutting_down") return new ApiError("unready", detail, retryAfter || 5);
  if (status === 401 || status === 403) return new ApiError("key", detail);
  if (status >= 400 && status < 500) return new ApiError("rejected", detail);
  return new ApiError("failed", detail);
}
