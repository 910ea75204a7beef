// Joins a room by its code and a name. Whatever the gateway answers is shown as text, never as HTML.
"use strict";

const page = Object.fromEntries(
  ["joining", "code", "name", "told", "joined", "room", "shown-name", "until", "scopes", "address", "token", "show",
    "copy"].map((id) => [id, document.getElementById(id)]),
);

function takeCode() {
  const code = decodeURIComponent(location.hash.slice(1));
  if (!code) return;
  // The code is not to stay in the history of the browser.
  history.replaceState(null, "", location.pathname);
  page.code.value = code;
  page.name.focus();
}

function show(answer) {
  page.joining.hidden = true;
  page.joined.hidden = false;
  page.told.textContent = "";
  page.room.textContent = `You are in the room ${answer.room}.`;
  page["shown-name"].textContent = answer.name;
  page.until.textContent = new Date(answer.endsAt).toLocaleString();
  page.scopes.textContent = answer.scopes.filter((scope) => scope.startsWith("tools:")).join(", ");
  page.address.textContent = `${location.origin}/mcp`;
  page.token.value = answer.accessToken;
}

page.joining.addEventListener("submit", async (event) => {
  event.preventDefault();
  page.told.textContent = "";
  try {
    const answer = await fetch("/api/v1/rooms/join", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ code: page.code.value, name: page.name.value }),
    });
    const content = await answer.json();
    if (answer.ok) show(content);
    else page.told.textContent = content.error.message;
  } catch {
    page.told.textContent = "The gateway does not answer.";
  }
});
page.show.addEventListener("click", () => {
  page.token.type = page.token.type === "password" ? "text" : "password";
});
page.copy.addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(page.token.value);
    page.copy.textContent = "Copied";
  } catch {
    // Without TLS a browser has no clipboard for pages.
    page.token.type = "text";
    page.token.select();
  }
});
takeCode();
