// An OpenID provider (the package oidc-provider) on a port of its own, which tests can have turn its keys, forge
// its tokens and answer wrongly: POST /control/… with JSON. It prints its address once it listens, and ends with
// its standard input.
import * as crypto from 'node:crypto';
import * as http from 'node:http';

import Provider from 'oidc-provider';
import MemoryAdapter from 'oidc-provider/lib/adapters/memory_adapter.js';

const SCOPES = ['openid', 'offline_access', 'profile', 'email', 'admin', 'tools:call', 'servers:read', 'events:read', 'reports'];
const MOST_BODY = 1_048_576;
const cookieKeys = [crypto.randomBytes(32).toString('hex')];

const state = {
  accounts: {},
  accessTokenAlgorithm: 'RS256',
  answers: {},
  forge: null,
  requests: {},
  tokenRequests: [],
};
let issuer;
let keys;
let provider;
let handle;

function newKeys() {
  const rsa = crypto.generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
  const ec = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
  const kid = crypto.randomBytes(6).toString('hex');
  return { RS256: { key: rsa, kid: `rsa-${kid}` }, ES256: { key: ec, kid: `ec-${kid}` } };
}

function sign(header, claims, { key, algorithm }) {
  const text = [header, claims].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url')).join('.');
  if (algorithm === 'none') return `${text}.`;
  const how = algorithm === 'ES256' ? { key, dsaEncoding: 'ieee-p1363' } : key;
  return `${text}.${crypto.sign('sha256', Buffer.from(text), how).toString('base64url')}`;
}

// `given`: claims, header, without (names of claims), algorithm, key ('own', or 'foreign' under the same kid).
function mint(given, claims = {}, type = undefined) {
  const algorithm = given.algorithm ?? 'RS256';
  const own = keys[algorithm] ?? keys.RS256;
  const key = given.key === 'foreign' ? newKeys()[algorithm].key : own.key;
  const all = { ...claims, ...given.claims };
  for (const name of given.without ?? []) delete all[name];
  const header = { alg: algorithm, kid: own.kid, ...(type && { typ: type }), ...given.header };
  return sign(header, all, { key, algorithm });
}

function configuration() {
  const jwks = Object.entries(keys).map(([alg, { key, kid }]) => ({ ...key.export({ format: 'jwk' }), kid, alg, use: 'sig' }));
  return {
    // The storage that all providers of this process share: what was given out outlives a change of keys.
    adapter: (model) => new MemoryAdapter(model),
    jwks: { keys: jwks },
    scopes: SCOPES,
    claims: { openid: ['sub'], profile: ['name', 'preferred_username', 'groups'], email: ['email', 'email_verified'] },
    conformIdTokenClaims: false,
    cookies: { keys: cookieKeys },
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
    features: {
      devInteractions: { enabled: false },
      registration: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: () => ({
          scope: SCOPES.join(' '),
          accessTokenFormat: 'jwt',
          accessTokenTTL: 300,
          jwt: { sign: { alg: state.accessTokenAlgorithm } },
        }),
      },
      rpInitiatedLogout: {
        enabled: true,
        logoutSource: (ctx, form) => {
          ctx.body = page('Log out?', `${form}<button form="op.logoutForm" name="logout" value="yes">Yes</button>`);
        },
        postLogoutSuccessSource: (ctx) => {
          ctx.body = page('Logged out', '');
        },
      },
    },
    ttl: { AccessToken: 300, AuthorizationCode: 60, IdToken: 300, Interaction: 300, Session: 3600, Grant: 3600 },
    pkce: { required: () => true },
    async findAccount(_, id) {
      const claims = Object.values(state.accounts).find(({ sub }) => sub === id);
      return claims && { accountId: id, claims: async () => claims };
    },
    // Nobody is asked for a consent: whoever is logged in gives what the client asks for.
    async loadExistingGrant(ctx) {
      const { client, session, params } = ctx.oidc;
      const id = ctx.oidc.result?.consent?.grantId || session.grantIdFor(client.clientId);
      const known = id ? await ctx.oidc.provider.Grant.find(id) : undefined;
      const grant = known ?? new ctx.oidc.provider.Grant({ clientId: client.clientId, accountId: session.accountId });
      grant.addOIDCScope(SCOPES.join(' '));
      for (const resource of [params.resource ?? []].flat()) grant.addResourceScope(resource, SCOPES.join(' '));
      await grant.save();
      return grant;
    },
    renderError: (ctx, out, error) => {
      ctx.type = 'html';
      ctx.body = page('Fault', `<pre>${escaped(JSON.stringify(out))} ${escaped(String(error.cause ?? error))}</pre>`);
    },
  };
}

function start() {
  provider = new Provider(issuer, configuration());
  provider.use(async (ctx, next) => {
    await next();
    if (ctx.path !== '/token' || !ctx.body?.id_token || !state.forge) return;
    const payload = JSON.parse(Buffer.from(ctx.body.id_token.split('.')[1], 'base64url'));
    ctx.body = { ...ctx.body, ...state.forge.answer };
    if (!('id_token' in (state.forge.answer ?? {}))) ctx.body.id_token = mint(state.forge, payload);
  });
  handle = provider.callback();
}

const escaped = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
const page = (title, body) => `<!doctype html><title>${title}</title><link rel="icon" href="data:,"><h1>${title}</h1>${body}`;

async function bodyOf(request) {
  let text = '';
  for await (const part of request) {
    text += part;
    if (text.length > MOST_BODY) throw new Error('too large');
  }
  return text;
}

async function interact(request, response) {
  const details = await provider.interactionDetails(request, response);
  let told = '';
  if (request.method === 'POST') {
    const given = new URLSearchParams(await bodyOf(request));
    const account = state.accounts[given.get('login')];
    if (account && given.get('password') === account.password) {
      await provider.interactionFinished(request, response, { login: { accountId: account.sub } });
      return;
    }
    told = '<p>Wrong.</p>';
  }
  response.setHeader('Content-Type', 'text/html; charset=utf-8');
  response.end(page('Who are you?', `${told}<form method="post" action="/interaction/${details.uid}">
    <input name="login" autocomplete="off"><input name="password" type="password" autocomplete="off"><button>Enter</button></form>`));
}

const CONTROL = {
  accounts: (given) => { Object.assign(state.accounts, given); },
  algorithm: ({ name }) => { state.accessTokenAlgorithm = name; },
  answers: (given) => { state.answers = given; },
  client: async (given) => { await new MemoryAdapter('Client').upsert(given.client_id, given); },
  forge: (given) => { state.forge = Object.keys(given).length ? given : null; },
  mint: (given) => ({ token: mint(given, {}, given.type) }),
  rotate: () => { keys = newKeys(); start(); },
  seen: () => ({ requests: state.requests, tokenRequests: state.tokenRequests }),
};

async function serve(request, response) {
  const { pathname } = new URL(request.url, issuer);
  if (pathname.startsWith('/control/')) {
    const answer = await CONTROL[pathname.slice('/control/'.length)](JSON.parse((await bodyOf(request)) || '{}'));
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify(answer ?? {}));
    return;
  }
  state.requests[pathname] = (state.requests[pathname] ?? 0) + 1;
  const wrong = state.answers[pathname];
  if (wrong) {
    await new Promise((resolve) => { setTimeout(resolve, wrong.delayMs ?? 0); });
    response.writeHead(wrong.status ?? 200, { 'Content-Type': 'application/json', ...wrong.headers });
    response.end(wrong.size ? 'x'.repeat(wrong.size) : JSON.stringify(wrong.body ?? {}));
  } else if (pathname.startsWith('/interaction/')) {
    await interact(request, response);
  } else {
    await handle(request, response);
  }
}

const server = http.createServer((request, response) => {
  serve(request, response).catch((error) => {
    console.error(error);
    response.statusCode = 500;
    response.end(String(error));
  });
});
server.listen(0, '127.0.0.1', () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  keys = newKeys();
  start();
  console.log(issuer);
});
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
