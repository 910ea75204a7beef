// Loaded before the conformance suite, which has no option for a token: gives every request the one of the
// environment. Host, Origin and all else stay as the suite has them.
import { createRequire } from "node:module";

const require = createRequire(process.argv[1]);
const { Agent, setGlobalDispatcher } = require("undici");
const authorization = `Bearer ${process.env.MCPGW_TOKEN}`;

const authorized = (dispatch) => (options, handler) => {
  const headers = options.headers ?? {};
  const named = Array.isArray(headers)
    ? [...headers, "authorization", authorization]
    : { ...(headers[Symbol.iterator] ? Object.fromEntries(headers) : headers), authorization };
  return dispatch({ ...options, headers: named }, handler);
};

// One for the `undici` that the suite imports, and for the fetch of Node itself, which share it.
setGlobalDispatcher(new Agent().compose(authorized));

// Some scenarios write their requests with Node's own client.
const http = require("node:http");
const request = http.request;
http.request = (url, options, callback) => {
  const sent = request(url, options, callback);
  sent.setHeader("Authorization", authorization);
  return sent;
};
