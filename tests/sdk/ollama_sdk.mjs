// The `ollama` package of npm against a running service: ollama_sdk.mjs BASE_URL MODEL_TO_PULL
// Prints a line for each promise and exits with 1 if one is not kept.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.env.JETFORGE_TEST_NODE_MODULES ?? ".", "x.js"));
const { Ollama } = require("ollama");
const client = new Ollama({ host: process.argv[2] });
const options = { temperature: 0, num_predict: 16 };
const messages = [{ role: "user", content: "Write a function that adds two numbers." }];

const promises = {
  async generate() {
    const whole = await client.generate({ model: "default", prompt: "Add.", options });
    assert.ok(whole.done && whole.response.length > 0);
    let text = "";
    let last;
    for await (const line of await client.generate({ model: "default", prompt: "Add.", options,
      stream: true })) {
      text += line.response;
      last = line;
    }
    assert.equal(text, whole.response);
    assert.equal(last.eval_count, whole.eval_count);
  },
  async chat() {
    const whole = await client.chat({ model: "default", messages, options });
    let text = "";
    for await (const line of await client.chat({ model: "default", messages, options,
      stream: true })) {
      text += line.message.content;
    }
    assert.equal(text, whole.message.content);
  },
  async aborted() {
    const stream = await client.chat({ model: "default", messages, stream: true,
      options: { temperature: 0, num_predict: 400 } });
    await assert.rejects(async () => {
      for await (const _ of stream) stream.abort();
    });
  },
  async models() {
    const { models } = await client.list();
    assert.equal(models[0].name, "default");
    assert.ok((await client.show({ model: "default" })).capabilities.includes("completion"));
    assert.ok((await client.ps()).models.length > 0);
    assert.ok((await client.version()).version);
  },
  async pull() {
    const model = process.argv[3];
    const names = async () => (await client.list()).models.map((model) => model.name);
    const steps = [];
    for await (const step of await client.pull({ model, stream: true })) steps.push(step);
    assert.equal(steps[0].status, "pulling manifest");
    assert.equal(steps.at(-1).status, "success");
    const told = steps.filter((step) => step.total);
    assert.ok(told.length > 0 && told.every((step) => step.digest.startsWith("sha256:")));
    assert.equal(told.at(-1).completed, told.at(-1).total);
    assert.equal((await client.pull({ model })).status, "success");
    assert.ok((await names()).includes(model));
    assert.equal((await client.delete({ model })).status, "success");
    assert.ok(!(await names()).includes(model));
  },
  async errors() {
    await assert.rejects(client.generate({ model: "default", prompt: "x", images: ["aGk="] }),
      /read text alone/);
  },
};

let isKept = true;
for (const [name, promise] of Object.entries(promises)) {
  try {
    await promise();
    console.log(`ok    ${name}`);
  } catch (error) {
    isKept = false;
    console.log(`NOT   ${name}: ${error}`);
  }
}
process.exit(isKept ? 0 : 1);
