// The page: it shows the view that the address names.
import "./controls.js";
import "./problems.js";
import "./tiles.js";
import "./reads.js";
import "./loaders.js";
import "./keys.js";
import "./processes.js";
import "./queues.js";
import "./events.js";
import "./calls.js";
import "./life.js";
import { set } from "./dom.js";
import { source } from "./source.js";

const views = { fleet: document.getElementById("fleet"), requests: document.getElementById("requests") };
const life = document.querySelector("swr-life");

/** Return a decoded part of an address, or the part itself if it is not encoded: a user may type a key with a "%". */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Show the view that the address names: #/fleet, #/requests, #/requests/ID or #/requests/key/TEXT. */
function route() {
  const [, view = "fleet", ...rest] = location.hash.split("/");
  const name = view in views ? view : "fleet";
  for (const [other, element] of Object.entries(views)) element.hidden = other !== name;
  for (const anchor of document.querySelectorAll(".views a")) {
    set(anchor, "aria-current", anchor.getAttribute("href") === `#/${name}` && "page");
  }
  source.listen(name === "requests");
  const isKey = rest.length > 1 && rest[0] === "key";
  const text = decoded((isKey ? rest.slice(1) : rest).join("/"));
  life.choose(text && name === "requests" ? new URLSearchParams({ [isKey ? "key" : "id"]: text }).toString() : null);
  source.tell();
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
addEventListener("hashchange", route);
route();
source.start();
