// The openai package of npm against a running server: node conformance.mjs ADDRESS KEY
import assert from 'node:assert/strict';
import OpenAI from 'openai';

const [address, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey, maxRetries: 0 });
const ask = { model: 'tiny-llama', messages: [{ role: 'user', content: 'What helps?' }], max_tokens: 12, seed: 5 };

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.deepEqual(models, ['tiny-llama', 'tuned']);

const whole = await client.chat.completions.create(ask);
assert.equal(whole.object, 'chat.completion');
const text = whole.choices[0].message.content;

let streamed = '';
let usage = null;
const stream = await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? '';
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.deepEqual(usage, whole.usage);

// The helper that gathers a stream wants every field in its place.
const gathered = await client.chat.completions.stream(ask).finalChatCompletion();
assert.equal(gathered.choices[0].message.content, text);

const scored = await client.completions.create({ model: 'tuned', prompt: ['Rest', 'Sleep'], max_tokens: 1, echo: true, logprobs: 2 });
assert.deepEqual(scored.choices.map((choice) => choice.index), [0, 1]);
assert.equal(scored.choices[0].logprobs.token_logprobs[0], null);

const endless = await client.chat.completions.create({ ...ask, stream: true, max_tokens: 300, ignore_eos: true });
for await (const _ of endless) break;

await assert.rejects(client.chat.completions.create({ ...ask, model: 'gpt-4' }), (error) => {
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, 'model_not_found');
  return true;
});
await assert.rejects(client.chat.completions.create({ ...ask, top_p: 7 }), OpenAI.BadRequestError);
await assert.rejects(new OpenAI({ baseURL: `${address}/v1`, apiKey: 'wrong', maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
