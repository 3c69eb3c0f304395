// Lets the official TypeScript MCP clients call Tollbridge: `sdk` (1.x, sessions) and `client` (2.x, both eras).
// Prints one line per check, `ok <what>` or `FAILED <what>: <why>`; the status is 1 when a check failed.
// Usage: typescript_client.mjs sdk|client URL; the tokens stand in MCP_TOKEN and MCP_VIEWER_TOKEN.

import assert from 'node:assert/strict';

const [library, url] = process.argv.slice(2);
const { Client, StreamableHTTPClientTransport } =
  library === 'sdk'
    ? {
        ...(await import('@modelcontextprotocol/sdk/client/index.js')),
        ...(await import('@modelcontextprotocol/sdk/client/streamableHttp.js')),
      }
    : await import('@modelcontextprotocol/client');

/** Connects with a token, in the era that `mode` names. */
async function connect(token, mode) {
  const options = mode === 'auto' ? { versionNegotiation: { mode: 'auto' } } : {};
  const client = new Client({ name: 'tollbridge-client-test', version: '1.0.0' }, options);
  const requestInit = { headers: { Authorization: `Bearer ${token}` } };
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit }));
  return client;
}

/** Calls a tool; the two libraries take the options in different places. */
function call(client, name, args, options) {
  const request = { name, arguments: args };
  return library === 'sdk' ? client.callTool(request, undefined, options) : client.callTool(request, options);
}

const text = (result) => result.content.filter((part) => part.type === 'text').map((part) => part.text).join('\n');

async function listsTools(client) {
  const names = (await client.listTools()).tools.map((tool) => tool.name);
  for (const name of ['run_agent', 'list_agents', 'search_knowledge']) assert.ok(names.includes(name), `${names}`);
}

async function runsWithProgress(client) {
  const seen = [];
  const result = await call(client, 'run_agent', { agent: 'researcher-slow', message: 'go' }, {
    onprogress: (progress) => seen.push(progress.message),
  });
  assert.ok(!result.isError && text(result).includes('tick'), text(result));
  assert.ok(seen.length > 0, 'no progress');
}

async function searches(client) {
  const result = await call(client, 'search_knowledge', { query: 'when does the tollbridge open' });
  assert.ok(text(result).includes('opens at dawn'), text(result));
}

async function cancels(client) {
  const started = text(await call(client, 'run_agent', { agent: 'researcher-slow', message: 'go', background: true }));
  const run = /^run: (.*)$/m.exec(started)?.[1];
  const cancelled = await call(client, 'cancel_run', { run });
  assert.ok(!cancelled.isError, text(cancelled));
  const ended = text(await call(client, 'get_run', { run, wait_s: 20 }));
  assert.match(ended, /^status: cancelled$/m);
}

async function leavesACall(client) {
  const leaving = new AbortController();
  const call_ = call(client, 'run_agent', { agent: 'researcher-slow', message: 'go' }, {
    onprogress: () => leaving.abort('enough'),
    signal: leaving.signal,
  });
  await assert.rejects(call_);
  assert.ok((await client.listTools()).tools.length > 0);
}

async function isRefused(client) {
  const names = (await client.listTools()).tools.map((tool) => tool.name);
  assert.ok(!names.includes('run_agent'), `${names}`);
  let result;
  try {
    result = await call(client, 'run_agent', { agent: 'assistant', message: 'let me in' });
  } catch {
    return; // a protocol error is a refusal too
  }
  assert.ok(result.isError && !text(result).includes('echo:'), text(result));
}

let failed = 0;
async function check(what, token, mode, test) {
  const name = `typescript ${library} (${mode}): ${what}`;
  let client;
  try {
    client = await connect(token, mode);
    await test(client);
    console.log(`ok ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}: ${String(error.message ?? error).split('\n')[0]}`);
  } finally {
    await client?.close().catch(() => {});
  }
}

for (const mode of library === 'sdk' ? ['session'] : ['legacy', 'auto']) {
  await check('lists tools', process.env.MCP_TOKEN, mode, listsTools);
  await check('runs an agent with progress', process.env.MCP_TOKEN, mode, runsWithProgress);
  await check('searches knowledge', process.env.MCP_TOKEN, mode, searches);
  await check('cancels a run', process.env.MCP_TOKEN, mode, cancels);
  await check('leaves a call that is under way', process.env.MCP_TOKEN, mode, leavesACall);
  await check('is refused as a viewer', process.env.MCP_VIEWER_TOKEN, mode, isRefused);
}
process.exit(failed ? 1 : 0);
