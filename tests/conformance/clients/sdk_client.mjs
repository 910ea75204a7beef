// The npm SDK's client does what a client does: `sdk_client.mjs URL`; the token is in MCPGW_TOKEN.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { ElicitRequestSchema } from "@modelcontextprotocol/sdk/types.js";

const headers = { Authorization: `Bearer ${process.env.MCPGW_TOKEN}` };
const transport = new StreamableHTTPClientTransport(new URL(process.argv[2]), { requestInit: { headers } });
const client = new Client({ name: "npm", version: "1" }, { capabilities: { elicitation: {} } });
client.setRequestHandler(ElicitRequestSchema, async () => ({
  action: "accept",
  content: { response: "yes" },
}));
await client.connect(transport);

const { tools } = await client.listTools();
const progress = [];
const counted = await client.callTool({ name: "main__test_tool_with_progress", arguments: {} }, undefined, {
  onprogress: (update) => progress.push(update.progress),
});
const abort = new AbortController();
let cancelled = false;
try {
  await client.callTool({ name: "main__test_wait", arguments: {} }, undefined, {
    signal: abort.signal,
    onprogress: () => abort.abort("enough"),
  });
} catch {
  cancelled = abort.signal.aborted;
}
const resource = await client.readResource({ uri: "test://static-text" });
const prompt = await client.getPrompt({
  name: "main__test_prompt_with_arguments",
  arguments: { arg1: "a", arg2: "b" },
});
const elicited = await client.callTool({ name: "main__test_elicitation", arguments: { message: "Go on?" } });
await transport.terminateSession();
await client.close();
console.log(
  JSON.stringify({
    tools: tools.map((tool) => tool.name),
    progress,
    is_error: Boolean(counted.isError),
    cancelled,
    resource: resource.contents[0].text,
    prompt: prompt.messages[0].content.text,
    elicited: elicited.content[0].text,
  }),
);
