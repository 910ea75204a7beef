// Shows /api/v1/openapi.json as the token's owner has it, and sends requests. No text of the document is ever
// taken for HTML: descriptions of tools are strangers' words.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete", "head"];
const LONGEST_SHOWN = 200000;
const MOST_NODES = 2000;
const MOST_LEVELS = 20;
const LONGEST_VALUE = 10000;
const page = Object.fromEntries(
  ["version", "login", "token", "search", "notice", "operations"].map((id) => [id, document.getElementById(id)]),
);
let api = null;

/** An element with attributes and children; a string becomes text. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function tell(text, isBad = false) {
  page.notice.textContent = text;
  page.notice.className = isBad ? "bad" : "";
}

/** What a reference of the document leads to; anything else as it is. */
function follow(value) {
  for (let steps = 0; value && typeof value.$ref === "string" && steps < 20; steps += 1) {
    const parts = value.$ref.slice(2).split("/").map((part) => part.replaceAll("~1", "/").replaceAll("~0", "~"));
    value = parts.reduce((place, part) => (place == null ? place : place[part]), api);
  }
  return value;
}

/**
 * A way through a schema. It is a stranger's: each value that is looked at costs one of the nodes that the whole
 * way has, and no reference is followed that is being followed already.
 */
class Way {
  constructor(nodes = { left: MOST_NODES }, depth = 0, references = []) {
    Object.assign(this, { nodes, depth, references });
  }

  /** The way to something inside; null where it ends. */
  into(value) {
    if (this.nodes.left <= 0) return null;
    this.nodes.left -= 1;
    const reference = value?.$ref;
    if (typeof reference !== "string") return new Way(this.nodes, this.depth + 1, this.references);
    if (this.references.includes(reference)) return null;
    return new Way(this.nodes, this.depth + 1, [...this.references, reference]);
  }
}

/** A schema with its references followed some levels down, to be read. */
function plain(schema, way = new Way().into(schema)) {
  if (way === null) return typeof schema?.$ref === "string" ? { $ref: schema.$ref } : "…";
  const found = follow(schema);
  if (typeof found === "string") return found.slice(0, LONGEST_VALUE);
  if (found === null || typeof found !== "object") return found;
  if (way.depth > MOST_LEVELS) return "…";
  const shown = Array.isArray(found) ? [] : {};
  for (const [key, value] of Object.entries(found)) {
    if (!Array.isArray(found) && (key === "$defs" || key === "definitions")) continue;
    const inner = way.into(value);
    Object.defineProperty(shown, key, { value: plain(value, inner), enumerable: true });
    if (way.nodes.left <= 0) break;
  }
  return shown;
}

/** The value, unless it is too long for a form. */
function short(value) {
  return (JSON.stringify(value) ?? "").length > LONGEST_VALUE ? null : value;
}

/** A value that a form may begin with. */
function sample(schema, way = new Way().into(schema)) {
  if (way === null || way.depth > MOST_LEVELS) return null;
  const found = follow(schema);
  if (!found || typeof found !== "object") return null;
  if ("default" in found) return short(found.default);
  if ("const" in found) return short(found.const);
  if (Array.isArray(found.enum)) return short(found.enum[0]);
  const type = Array.isArray(found.type) ? found.type[0] : found.type;
  if (type === "object" || found.properties) {
    const required = found.required ?? [];
    const names = Object.keys(found.properties ?? {}).filter((name) => required.includes(name));
    return Object.fromEntries(names.slice(0, way.nodes.left).map((name) => {
      const inner = found.properties[name];
      return [name, sample(inner, way.into(inner))];
    }));
  }
  if (type === "array") return [];
  if (type === "integer" || type === "number") return found.minimum ?? 0;
  if (type === "boolean") return false;
  if (type === "string") return "";
  const choices = found.oneOf ?? found.anyOf;
  return choices ? sample(choices[0], way.into(choices[0])) : null;
}

function schemaOf(content, type = "application/json") {
  return content?.[type]?.schema;
}

function shownSchema(title, schema) {
  if (!schema) return null;
  return make("details", {}, make("summary", {}, title),
    make("pre", {}, JSON.stringify(plain(schema), null, 2).slice(0, LONGEST_SHOWN)));
}

function shownResponses(responses) {
  const rows = Object.entries(responses).map(([status, response]) => {
    const found = follow(response);
    const details = status < "300" ? shownSchema("schema", schemaOf(found.content)) : null;
    return make("tr", {}, make("td", {}, make("code", {}, status)), make("td", {}, found.description, details));
  });
  return make("table", {}, make("tbody", {}, ...rows));
}

/** Send what stands in the form, and show the answer as it comes. */
async function send(operation, form, output) {
  const url = new URL(operation.path.replace(/\{(\w+)\}/g, (_, name) =>
    encodeURIComponent(form.elements[`path.${name}`].value)), location.origin);
  const headers = { Authorization: `Bearer ${page.token.value}` };
  for (const parameter of operation.parameters) {
    const field = form.elements[`${parameter.in}.${parameter.name}`];
    if (parameter.in === "query" && field.value) url.searchParams.set(parameter.name, field.value);
    if (parameter.in === "header" && field.value) headers[parameter.name] = field.value;
  }
  const request = { method: operation.method.toUpperCase(), headers, signal: operation.stop.signal };
  const body = form.elements.body?.value.trim();
  if (body) {
    JSON.parse(body);
    headers["Content-Type"] = "application/json";
    request.body = body;
  }
  if (form.elements.stream?.checked) headers.Accept = "text/event-stream";
  const answer = await fetch(url, request);
  const status = make("strong", { className: answer.ok ? "good" : "bad" }, `${answer.status} ${answer.statusText}`);
  const text = make("pre");
  output.replaceChildren(status, text);
  if (!answer.body) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let read = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (read.length < LONGEST_SHOWN) read += part.value;
    text.textContent = read;
  }
  if ((answer.headers.get("Content-Type") ?? "").startsWith("application/json")) {
    try {
      text.textContent = JSON.stringify(JSON.parse(read), null, 2);
    } catch {
      // It was cut, or is as it came.
    }
  }
}

function tryForm(operation) {
  const output = make("div", { role: "status" });
  const form = make("form");
  for (const parameter of operation.parameters) {
    form.append(make("label", { title: parameter.description ?? "" }, `${parameter.name} `,
      make("input", { name: `${parameter.in}.${parameter.name}`, required: parameter.in === "path" })));
  }
  const schema = schemaOf(follow(operation.requestBody)?.content);
  if (schema) {
    const value = JSON.stringify(sample(schema) ?? {}, null, 2);
    form.append(make("textarea", { name: "body", value, spellcheck: false, ariaLabel: "body" }));
  }
  const streams = Object.values(operation.responses).some((one) => schemaOf(follow(one).content, "text/event-stream"));
  if (streams) form.append(make("label", {}, make("input", { type: "checkbox", name: "stream" }), " as a stream"));
  const stop = make("button", { type: "button", hidden: true }, "Stop");
  form.append(make("button", {}, "Send"), stop);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    operation.stop?.abort();
    operation.stop = new AbortController();
    stop.hidden = false;
    output.replaceChildren("…");
    try {
      await send(operation, form, output);
    } catch (error) {
      output.append(make("p", { className: "bad" }, error.name === "AbortError" ? "stopped" : String(error.message)));
    }
    stop.hidden = true;
  });
  stop.addEventListener("click", () => operation.stop.abort());
  return make("div", {}, make("h3", {}, "Try it"), form, output);
}

function shownOperation(operation) {
  const content = make("div");
  const details = make("details", { className: "operation" },
    make("summary", {}, make("span", { className: "method" }, operation.method.toUpperCase()),
      make("code", {}, operation.path), " ", make("span", { className: "about" }, operation.summary ?? "")),
    content);
  details.addEventListener("toggle", () => {
    if (!details.open || content.hasChildNodes()) return;
    const scopes = (operation.security ?? []).flatMap((one) => one.bearer ?? []);
    content.append(
      make("p", {}, operation.description || operation.summary || ""),
      make("p", { className: "about" }, scopes.length ? `Scope: ${scopes.join(", ")}` : ""),
    );
    const body = shownSchema("Body", schemaOf(follow(operation.requestBody)?.content));
    if (body) content.append(body);
    content.append(make("h3", {}, "Answers"), shownResponses(operation.responses), tryForm(operation));
  });
  return details;
}

function* operations() {
  for (const [path, item] of Object.entries(api.paths)) {
    for (const method of METHODS) {
      if (!item[method]) continue;
      const parameters = [...(item.parameters ?? []), ...(item[method].parameters ?? [])].map(follow);
      yield { ...item[method], path, method, parameters };
    }
  }
}

function show() {
  const words = page.search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const sections = new Map();
  for (const operation of operations()) {
    const text = `${operation.path} ${operation.summary} ${operation.description ?? ""}`.toLowerCase();
    if (!words.every((word) => text.includes(word))) continue;
    const tag = operation.tags?.[0] ?? "";
    sections.set(tag, [...(sections.get(tag) ?? []), operation]);
  }
  page.operations.replaceChildren(...api.tags.filter((tag) => sections.has(tag.name)).map((tag) =>
    make("section", {}, make("h2", {}, tag.name), make("p", { className: "about" }, tag.description ?? ""),
      ...sections.get(tag.name).map(shownOperation))));
}

page.login.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const answer = await fetch("/api/v1/openapi.json", { headers: { Authorization: `Bearer ${page.token.value}` } });
    const read = await answer.json();
    if (!answer.ok) throw new Error(read.error.message);
    api = read;
  } catch (error) {
    tell(String(error.message), true);
    return;
  }
  page.version.textContent = api.info.version;
  tell(api.info.description);
  show();
});
page.search.addEventListener("input", () => api && show());
