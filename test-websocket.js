#!/usr/bin/env node
/**
 * Check a running gateway over its WebSocket, step by step, and say what to do where a step fails.
 *
 *     make run                                                            in one terminal
 *     export MCPGW_TOKEN="$(.venv/bin/mcpgw token create --user me)"      in another
 *     node test-websocket.js
 *
 * It needs Node 20.10 or newer and nothing to install, and is meant to be read as an example of a client.
 * test-websocket.py does the same with Python. What it saves it deletes again.
 * Exit code: 0 all steps passed, 1 a step failed, 2 wrong usage.
 */

'use strict';

const { spawnSync } = require('child_process');
const { randomBytes } = require('crypto');
const { existsSync } = require('fs');
const http = require('http');
const https = require('https');
const { setTimeout: sleep } = require('timers/promises');
const { parseArgs } = require('util');

/** How a shell finds `mcpgw` from here: where `make run` has put it beside this file, else on PATH. */
function gatewayCommand() {
  const path = `${__dirname}/.venv/bin/mcpgw`;
  if (!existsSync(path)) return 'mcpgw';
  if (__dirname === process.cwd()) return '.venv/bin/mcpgw';
  return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", `'"'"'`)}'`;
}

const START = 'start it with: make run';
const CREATE = `${gatewayCommand()} token create --user me`;
const CREATE_ONE = `create one: ${CREATE}\nand pass it: export MCPGW_TOKEN="$(${CREATE})"`;
const SEE_LOG = "see the gateway's log: tail logs/gateway.log";
const CHECK_URL = `check --url: another program may have this port\nif the gateway does not run, ${START}`;
const USE_WS = `the gateway's WebSocket ends in /ws\n${CHECK_URL}`;
const ADVICE = {
  auth_failed: `on the gateway's own machine ${CREATE_ONE}`,
  token_expired: CREATE_ONE,
  permission_denied: `this token may not do it: ${CREATE_ONE}`,
  server_not_found: 'switch the memory server on: [memory] enabled = true in mcpgw.toml',
  server_unavailable: `the memory server is not ready: try again in some seconds\nor ${SEE_LOG}`,
  draining: `the gateway is ending; when it has ended, ${START}`,
};
const CALL_ENDS = ['tool_response', 'error'];
const CANCEL_TRIES = 5;

/** A step failed: `message` says what was wrong and `advice` what to do. */
class StepError extends Error {
  constructor(message, advice = SEE_LOG) {
    super(message);
    this.advice = advice;
  }
}

/** The gateway's own words, safe for a terminal: at most 300 characters, control characters escaped. */
function printable(value) {
  const text = typeof value === 'string' ? value : JSON.stringify(value) ?? 'nothing';
  const escape = (char) => `\\u${char.codePointAt(0).toString(16).padStart(4, '0')}`;
  return Array.from(text).slice(0, 300).join('').replace(/(?! )[\p{C}\p{Z}]/gu, escape);
}

/** The `data` of a frame that has to be of a `kind` and to have these `members`. */
function expect(frame, kind, members = {}) {
  const data = frame.data;
  const same = ([name, value]) => data[name] === value;
  if (frame.type === kind && Object.entries(members).every(same)) return data;
  if (frame.type === 'error') {
    const reason = data.details?.reason;
    const because = reason ? ` (${printable(reason)})` : '';
    const advice = Object.hasOwn(ADVICE, data.code) ? ADVICE[data.code] : SEE_LOG;
    throw new StepError(`${printable(data.code)}: ${printable(data.error)}${because}`, advice);
  }
  if (frame.type === 'tool_response' && data.success === false) {
    throw new StepError(`the tool answered with an error: ${printable(data.result)}`);
  }
  throw new StepError(`a frame ${printable(frame.type)} came that was not expected`);
}

/** A promise with a time limit: after `milliseconds` it fails with `late()`. */
function within(milliseconds, promise, late) {
  let timer;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(late()), Math.max(0, milliseconds));
  });
  return Promise.race([promise, limit]).finally(() => clearTimeout(timer));
}

/** A WebSocket to the gateway: sends frames and waits for their answers, at most `timeout` seconds. */
class Connection {
  constructor(url, token, timeout) {
    this.token = token;
    this.timeout = timeout;
    this.goodbye = '';
    this.closeCode = null;
    this.messages = []; // what has come and was not read yet
    this.wake = () => {};
    this.websocket = new WebSocket(url);
    this.opened = new Promise((resolve, reject) => {
      this.websocket.addEventListener('open', resolve);
      this.websocket.addEventListener('error', reject);
      this.websocket.addEventListener('close', reject);
    });
    this.ended = new Promise((resolve) => {
      this.websocket.addEventListener('close', (event) => {
        this.closeCode = event.code;
        resolve();
        this.wake();
      });
    });
    this.websocket.addEventListener('message', (event) => {
      this.messages.push(event.data);
      this.wake();
    });
  }

  /** Send one frame. Its id comes back on every frame that answers it. */
  send(type, id, data) {
    if (this.closeCode !== null) throw this.closed();
    this.websocket.send(JSON.stringify({ type, id, data, timestamp: Date.now() }));
  }

  /** The next frame, whatever it is; `deadline` is a time of `performance.now`. */
  async receive(deadline = performance.now() + this.timeout * 1000) {
    const late = () => new StepError(`no answer within ${this.timeout} s`);
    while (this.messages.length === 0) {
      if (this.closeCode !== null) throw this.closed();
      const news = new Promise((resolve) => {
        this.wake = resolve;
      });
      await within(deadline - performance.now(), news, late);
    }
    let text = String(this.messages.shift());
    // Whoever answers there: what he sends back is printed without the token.
    if (this.token.length >= 16) text = text.replaceAll(this.token, '[token]');
    let frame;
    try {
      frame = { data: {}, ...JSON.parse(text) };
    } catch {
      frame = {};
    }
    if (typeof frame.type !== 'string') {
      throw new StepError("what answers does not speak the gateway's protocol", CHECK_URL);
    }
    if (frame.type === 'disconnect') this.goodbye = `: ${printable(frame.data.reason)}`;
    return frame;
  }

  /** Send one frame and wait for its answer; frames for others and a call's progress are passed over. */
  async request(type, id, data) {
    this.send(type, id, data);
    const deadline = performance.now() + this.timeout * 1000;
    for (;;) {
      const frame = await this.receive(deadline);
      if (frame.id === id && !['tool_progress', 'tool_log'].includes(frame.type)) return frame;
    }
  }

  /** Call a tool of the memory server. */
  call(tool, params, id) {
    return this.request('tool_call', id, memoryCall(tool, params));
  }

  /** What to say of a connection that the gateway has closed. */
  closed() {
    return new StepError(`the gateway closed the connection (${this.closeCode}${this.goodbye})`);
  }
}

/** The `data` of a `tool_call` to the memory server. */
function memoryCall(toolName, params) {
  return { serverId: 'memory', toolName, params };
}

/** Why no WebSocket opened. WebSocket does not say it, so the request is sent once more as plain HTTP. */
function whyNotOpened(url, timeout) {
  const { protocol, host } = url;
  const address = new URL(url.href.replace(/^ws/, 'http'));
  const headers = {
    Connection: 'Upgrade',
    Upgrade: 'websocket',
    'Sec-WebSocket-Version': '13',
    'Sec-WebSocket-Key': randomBytes(16).toString('base64'),
  };
  const probe = (protocol === 'wss:' ? https : http).get(address, { headers, agent: false });
  const why = new Promise((resolve) => {
    probe.on('upgrade', () => resolve(new StepError(`${host} does not speak WebSocket`, CHECK_URL)));
    probe.on('response', ({ statusCode }) => {
      if (statusCode === 403) {
        const advice = "use 127.0.0.1 in --url, or list the host's name in server.allowed_hosts";
        resolve(new StepError(`the gateway at ${host} refused the host's name (HTTP 403)`, advice));
      }
      const answer = statusCode < 300 ? 'a page' : `HTTP ${statusCode}`;
      resolve(new StepError(`${host} answered with ${answer} and opened no WebSocket`, USE_WS));
    });
    probe.on('error', ({ code }) => {
      if (code === 'ECONNREFUSED') {
        resolve(new StepError(`nothing listens at ${host}`, `the gateway does not run: ${START}`));
      } else if (code === 'ENOTFOUND' || code === 'EAI_AGAIN') {
        resolve(new StepError(`the host of ${host} is not known`, 'check --url'));
      }
      resolve(new StepError(`${host} does not speak WebSocket`, CHECK_URL));
    });
  });
  const late = () => new StepError(`nothing answered at ${host} within ${timeout} s`, CHECK_URL);
  return within(timeout * 1000, why, late).finally(() => probe.destroy());
}

/** The steps. Each returns nothing, or a remark, or throws a `StepError`. */
class Check {
  constructor(url, token, timeout) {
    this.url = url;
    this.token = token;
    this.timeout = timeout;
    this.project = `test-websocket-${randomBytes(4).toString('hex')}`;
    this.savedId = '';
    this.connection = null;
  }

  /** Open the WebSocket, without credentials. */
  async connect() {
    const connection = new Connection(this.url, this.token, this.timeout);
    const problem = `nothing answered at ${this.url.host} within ${this.timeout} s`;
    const late = () => new StepError(problem, CHECK_URL);
    try {
      await within(this.timeout * 1000, connection.opened, late);
    } catch (error) {
      throw error instanceof StepError ? error : await whyNotOpened(this.url, this.timeout);
    }
    this.connection = connection;
  }

  /** The gateway greets first, and asks for credentials. */
  async status() {
    expect(await this.connection.receive(), 'status', { requiresAuth: true });
  }

  /** A ping is answered before auth too. */
  async ping() {
    expect(await this.connection.request('ping', 'ping-1', {}), 'pong');
  }

  /** A call is refused as long as the gateway does not know who calls. */
  async callBeforeAuth() {
    const frame = await this.connection.call('memory_search', { project: this.project }, 'early-1');
    expect(frame, 'error', { code: 'auth_required' });
  }

  /** Prove who we are with a token. */
  async auth() {
    if (!this.token) throw new StepError('the token is missing', CREATE_ONE);
    const frame = await this.connection.request('auth', 'auth-1', { token: this.token });
    expect(frame, 'status', { authenticated: true });
  }

  /** The memory server's tools are there. */
  async listTools() {
    const deadline = performance.now() + this.timeout * 1000;
    let frame;
    for (;;) {
      frame = await this.connection.request('list_tools', 'list-1', { serverId: 'memory' });
      // A gateway that has just started may still be starting its memory server.
      if (frame.data.code !== 'server_unavailable' || performance.now() + 250 > deadline) break;
      await sleep(250);
    }
    const tools = expect(frame, 'tools').tools.map((tool) => tool.name);
    const missing = ['memory_save', 'memory_search'].filter((name) => !tools.includes(name));
    if (missing.length > 0) {
      throw new StepError(`not in the list: ${missing.join(', ')}`, ADVICE.permission_denied);
    }
  }

  /** Call a tool that writes. */
  async memorySave() {
    const params = { project: this.project, content: 'The quick brown fox was here.' };
    const frame = await this.connection.call('memory_save', params, 'save-1');
    this.savedId = expect(frame, 'tool_response', { success: true }).result.memory.id;
  }

  /** Call a tool that reads. */
  async memorySearch() {
    const params = { project: this.project, query: 'brown fox' };
    const frame = await this.connection.call('memory_search', params, 'search-1');
    const { memories } = expect(frame, 'tool_response', { success: true }).result;
    if (memories.length !== 1 || memories[0].id !== this.savedId) {
      throw new StepError(`one memory was saved and ${memories.length} others were found`);
    }
  }

  /** A name with a typing error is refused, and the right one is told. */
  async unknownTool() {
    const frame = await this.connection.call('memory_serch', {}, 'typo-1');
    const data = expect(frame, 'error', { code: 'tool_not_found' });
    if (!data.error.includes("'memory_search'")) {
      throw new StepError(`the nearest name is not told: ${printable(data.error)}`);
    }
  }

  /** A call that is cancelled at once has exactly one end. */
  async cancel() {
    const data = memoryCall('memory_search', { project: this.project });
    for (let attempt = 0; attempt < CANCEL_TRIES; attempt += 1) {
      const [id, nextId] = [`cancel-${attempt}`, `after-cancel-${attempt}`];
      this.connection.send('tool_call', id, data);
      this.connection.send('cancel', id, {});
      // A second call: by the time it is answered, a wrong second end of the first would have come.
      this.connection.send('tool_call', nextId, data);
      const ends = [];
      let nextEnded = false;
      const deadline = performance.now() + this.timeout * 1000;
      while (ends.length === 0 || !nextEnded) {
        const frame = await this.connection.receive(deadline);
        // unknown_call: the cancel came too late; it answers the cancel, not the call
        if (!CALL_ENDS.includes(frame.type) || frame.data.code === 'unknown_call') continue;
        nextEnded = nextEnded || frame.id === nextId;
        if (frame.id === id) ends.push(frame);
      }
      if (ends.length > 1) throw new StepError(`the call had ${ends.length} ends`);
      if (ends[0].data.code === 'cancelled') return null;
      expect(ends[0], 'tool_response', { success: true });
    }
    return `each of ${CANCEL_TRIES} calls was faster than its cancel`;
  }

  /** Leave the gateway as it was. */
  async memoryDelete() {
    const frame = await this.connection.call('memory_delete', { id: this.savedId }, 'delete-1');
    if (expect(frame, 'tool_response', { success: true }).result.deleted !== true) {
      throw new StepError('the memory that was saved is gone already');
    }
  }

  /** Say goodbye; the gateway says it too. */
  async close() {
    const late = () => new StepError(`the gateway did not close within ${this.timeout} s`);
    this.connection.websocket.close(1000);
    await within(this.timeout * 1000, this.connection.ended, late);
    if (this.connection.closeCode !== 1000) {
      throw new StepError(`the connection ended with the code ${this.connection.closeCode} instead of 1000`);
    }
  }

  /** Every step: its name, the name of the step that it cannot do without, and what it does. */
  steps() {
    return [
      ['connect', '', this.connect],
      ['status comes first', 'connect', this.status],
      ['ping', 'connect', this.ping],
      ['call before auth is refused', 'connect', this.callBeforeAuth],
      ['auth', 'connect', this.auth],
      ['list_tools', 'auth', this.listTools],
      ['memory_save', 'list_tools', this.memorySave],
      ['memory_search', 'memory_save', this.memorySearch],
      ['unknown tool is refused', 'list_tools', this.unknownTool],
      ['cancel', 'list_tools', this.cancel],
      ['memory_delete', 'memory_save', this.memoryDelete],
      ['close', 'connect', this.close],
    ];
  }
}

/** Run the steps one by one and `report` each. `passed` is null where a step was not run. */
async function run(check, report) {
  const results = [];
  const done = new Set(['']);
  for (const [name, needed, step] of check.steps()) {
    const result = { name, passed: null, ms: null, problem: null, advice: null, remark: null };
    if (done.has(needed)) {
      const started = performance.now();
      try {
        result.remark = (await step.call(check)) ?? null;
        result.passed = true;
        done.add(name);
      } catch (error) {
        result.passed = false;
        if (error instanceof StepError) {
          [result.problem, result.advice] = [error.message, error.advice];
        } else if (error instanceof TypeError) {
          // An answer without the members that the protocol promises.
          [result.problem, result.advice] = [`malformed answer: ${error.message}`, SEE_LOG];
        } else {
          throw error;
        }
      }
      result.ms = Math.round((performance.now() - started) * 10) / 10;
    } else {
      result.remark = `not run: it needs ${needed}`;
    }
    results.push(result);
    report(result);
  }
  return results;
}

/**
 * Print one step as a line, and what to do below it; the summary counts what was not run.
 * Colour only on a terminal, and never where it is not wanted (https://no-color.org).
 */
function show({ name, passed, ms, problem, advice, remark }) {
  const colours = process.stdout.isTTY && !process.env.NO_COLOR;
  const [green, red, plain] = colours ? ['\x1b[32m', '\x1b[31m', '\x1b[0m'] : ['', '', ''];
  if (passed === null) return;
  if (passed) {
    console.log(`${green}✓${plain} ${name}  ${ms.toFixed(1)} ms${remark ? `  (${remark})` : ''}`);
  } else {
    const indented = advice.replaceAll('\n', '\n    ');
    console.log(`${red}✗${plain} ${name}  ${ms.toFixed(1)} ms: ${problem}\n  → ${indented}`);
  }
}

const HELP = `usage: node test-websocket.js [--url URL] [--token TOKEN] [--timeout SECONDS] [--json]

Check a running gateway over its WebSocket.

  --url URL          else MCPGW_URL, else ws://127.0.0.1:3000/ws
  --token TOKEN      else MCPGW_TOKEN, which no other user of the machine can see
  --timeout SECONDS  for each wait (10)
  --json             print a report as JSON instead
`;

class UsageError extends Error {}

/** The address of the WebSocket: `http` becomes `ws`, and a missing path `/ws`. */
function socketUrl(text) {
  let url;
  try {
    url = new URL(text.replace(/^http/i, 'ws'));
  } catch {
    url = null;
  }
  const usable = url && ['ws:', 'wss:'].includes(url.protocol) && url.port !== '0';
  if (!usable || url.username || url.password || url.search || url.hash) {
    throw new UsageError('argument --url: give an address such as ws://127.0.0.1:3000/ws');
  }
  if (url.pathname === '/') url.pathname = '/ws';
  return url;
}

/** The options of the command line, else of the environment. */
function readOptions() {
  const text = { type: 'string' };
  const flag = { type: 'boolean', default: false };
  let values;
  try {
    ({ values } = parseArgs({
      options: { url: text, token: text, timeout: text, json: flag, help: { ...flag, short: 'h' } },
    }));
  } catch (error) {
    throw new UsageError(error.message);
  }
  const timeout = Number(values.timeout ?? 10);
  if (!(timeout >= 0.1 && timeout <= 600)) {
    throw new UsageError('argument --timeout: give seconds, 0.1 to 600');
  }
  return {
    url: socketUrl(values.url ?? (process.env.MCPGW_URL || 'ws://127.0.0.1:3000/ws')),
    token: (values.token || process.env.MCPGW_TOKEN || '').trim(),
    timeout,
    json: values.json,
    help: values.help,
  };
}

/** Read the options, run the steps, and answer the exit code. */
async function main() {
  let options;
  try {
    options = readOptions();
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    process.stderr.write(`${HELP}\ntest-websocket.js: error: ${error.message}\n`);
    return 2;
  }
  if (options.help) {
    process.stdout.write(HELP);
    return 0;
  }
  const check = new Check(options.url, options.token, options.timeout);
  const results = await run(check, options.json ? () => {} : show);
  const good = results.filter((result) => result.passed).length;
  const bad = results.filter((result) => result.passed === false).length;
  const passed = good === results.length;
  if (options.json) {
    console.log(JSON.stringify({ url: options.url.href, passed, steps: results }, null, 2));
  } else {
    const others = bad ? `, ${bad} failed, ${results.length - good - bad} not run` : '';
    console.log(`${good} of ${results.length} steps passed${others} (${options.url.href})`);
  }
  return passed ? 0 : 1;
}

/** Node 20 has WebSocket behind a flag: start this script once more with it. */
function startWithFlag() {
  const flag = '--experimental-websocket';
  if (!process.allowedNodeEnvironmentFlags.has(flag) || process.execArgv.includes(flag)) {
    process.stderr.write(`this Node is too old (${process.version}): install Node 20.10 or newer\n`);
    return 2;
  }
  const again = ['--no-warnings', flag, ...process.execArgv, __filename, ...process.argv.slice(2)];
  return spawnSync(process.execPath, again, { stdio: 'inherit' }).status ?? 130;
}

if (typeof globalThis.WebSocket === 'undefined') {
  process.exitCode = startWithFlag();
} else {
  // A connection that never answers would keep Node alive: leave as soon as everything is written.
  main().then((code) => process.stdout.write('', () => process.exit(code)));
}
