// Asks for the part of the page that changes, and puts in what did change: an element with an id stays as it is where its
// text is the same, so that what the reader opened, marked or scrolled to stays.
"use strict";
const every = Math.max(1, Number(document.body.dataset.every)) * 1000;
const state = document.getElementById("state");
const link = document.getElementById("link");
const followed = link.textContent;
let tag = "";
let sources = new Map();

function pieces(root) {
  return [...root.children].filter((each) => each.tagName !== "SCRIPT");
}

function put(text) {
  const incoming = new DOMParser().parseFromString(text, "text/html").body;
  const fresh = new Map();
  const before = new Map([...state.querySelectorAll("[id]")].map((each) => [each.id, each]));
  for (const each of incoming.querySelectorAll("[id]")) fresh.set(each.id, each.outerHTML);
  const open = new Set([...state.querySelectorAll("details")].map((each, at) => each.open ? at : -1));
  const counted = state.querySelectorAll("details").length;
  const same = pieces(incoming).length === pieces(state).length
    && pieces(incoming).every((each, at) => each.id && each.id === pieces(state)[at].id);
  if (same) {
    for (const each of pieces(incoming)) {
      const old = before.get(each.id);
      if (each.id === "curves" && old.children.length === each.children.length) {
        for (const chart of [...each.children]) {
          if (sources.get(chart.id) !== fresh.get(chart.id)) before.get(chart.id).replaceWith(chart);
        }
      } else if (sources.get(each.id) !== fresh.get(each.id)) old.replaceWith(each);
    }
  } else state.replaceChildren(...incoming.children);
  sources = fresh;
  const details = state.querySelectorAll("details");
  if (details.length === counted) details.forEach((each, at) => { each.open = open.has(at); });
  ages();
}

function ages() {
  for (const each of state.querySelectorAll("time")) {
    const seconds = Math.max(0, Math.round((Date.now() - Date.parse(each.dateTime)) / 1000));
    const text = seconds < 90 ? `${seconds} s ago` : seconds < 5400 ? `${Math.round(seconds / 60)} min ago` : `${Math.round(seconds / 3600)} h ago`;
    if (each.textContent !== text) each.textContent = text;
  }
}

function say(text, lost) {
  if (link.textContent !== text) link.textContent = text;
  link.classList.toggle("lost", lost);
}

async function ask() {
  if (document.visibilityState === "visible") {
    try {
      const answer = await fetch("/state", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
      if (answer.status === 200) {
        tag = answer.headers.get("ETag") || "";
        put(await answer.text());
      }
      say(answer.ok || answer.status === 304 ? followed : `The monitor refuses (${answer.status}): open its address again.`, !answer.ok && answer.status !== 304);
    } catch {
      say("The monitor has ended: this is what it last showed.", true);
    }
  }
  setTimeout(ask, every);
}

document.addEventListener("visibilitychange", ages);
setInterval(ages, 1000);
ages();
ask();
