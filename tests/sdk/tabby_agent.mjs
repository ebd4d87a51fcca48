// Tabby's own agent, as editors run it, against a running service: tabby_agent.mjs BASE_URL
// Prints a line for each promise and exits with 1 if one is not kept.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.env.JETFORGE_TEST_NODE_MODULES ?? ".", "x.js"));
const { TabbyAgent } = require("tabby-agent");
const agent = new TabbyAgent();
const config = {
  server: { endpoint: process.argv[2], token: process.argv[3] ?? "", requestTimeout: 60000 },
  completion: { debounce: { mode: "fixed", interval: 0 } },
  anonymousUsageTracking: { disable: true },
};

const promises = {
  async connects() {
    assert.ok(await agent.initialize({ config }));
    assert.equal(agent.getStatus(), "ready");
    const state = agent.getServerHealthState();
    assert.equal(state.device, "cpu");
    assert.ok(state.cpu_count >= 1 && state.arch, JSON.stringify(state));
  },
  async completes() {
    const text = "def add(a, b):\n    \n\nprint(add(1, 2))\n";
    const answer = await agent.provideCompletions({
      filepath: "/tmp/add.py", language: "python", text, position: text.indexOf("\n\nprint"),
      manually: true,
    });
    assert.ok(typeof answer.id === "string", JSON.stringify(answer));
    assert.ok(answer.choices.length > 0, "it has something to say");
    assert.ok(answer.choices.every((choice) => choice.text.trim()), JSON.stringify(answer));
    assert.equal(agent.getStatus(), "ready");
    assert.deepEqual(agent.getIssues().filter((issue) => issue === "connectionFailed"), []);
  },
  async tells() {
    for (const type of ["view", "select", "dismiss"]) {
      const event = { type, completion_id: "cmpl-1", choice_index: 0, view_id: "v", elapsed: 5 };
      assert.ok(await agent.postEvent(event), type);
    }
  },
};

let isKept = true;
for (const name of ["connects", "completes", "tells"]) {
  try {
    await promises[name]();
    console.log(`ok    ${name}`);
  } catch (error) {
    isKept = false;
    console.log(`NOT   ${name}: ${error}`);
  }
}
await agent.finalize();
process.exit(isKept ? 0 : 1);
