"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const page = JSON.parse($("data").textContent);
  const hash = document.querySelector('meta[name="page"]').content;
  const items = page.items;
  const shelf = `gipo_mc/${hash}`; // where this browser keeps the votes of this page, and of no other
  const VOTES = { left: "A is better", right: "B is better", tie: "a tie", skip: "skipped" };
  const QUICK = 300; // ms in which a second press belongs to the pair before

  // ------------------------------------------------------------------------------------------------------- what is kept
  // { last: name, keys: bool, voters: { name: { at: n, votes: [null | { vote, seconds }] } } }
  let kept = { last: "", keys: true, voters: {} };
  let name = "";
  let mine = null; // kept.voters[name]
  let keeps = true;

  const isVote = (v) => v === null || (typeof v === "object" && Object.hasOwn(VOTES, v.vote) && Number.isFinite(v.seconds) && v.seconds >= 0);
  const isVoter = (v) =>
    v !== null && typeof v === "object" && Number.isInteger(v.at) && v.at >= 0 && v.at <= items.length &&
    Array.isArray(v.votes) && v.votes.length === items.length && v.votes.every(isVote);

  function load() {
    let text = null;
    try {
      text = localStorage.getItem(shelf);
    } catch {
      cannotKeep();
    }
    if (text === null) return;
    try {
      const read = JSON.parse(text);
      const voters = Object.entries(read.voters);
      if (!voters.every(([, voter]) => isVoter(voter))) throw new Error("not what this page writes");
      // A name may be "__proto__": only Map and Object.fromEntries take it as a name.
      kept = { last: String(read.last), keys: read.keys !== false, voters: Object.fromEntries(voters) };
    } catch {
      warn("What this browser had kept of your votes is damaged, and was left out. If you have downloaded a file, keep it.");
    }
  }

  function save() {
    try {
      localStorage.setItem(shelf, JSON.stringify(kept));
    } catch {
      cannotKeep();
    }
  }

  function cannotKeep() {
    keeps = false;
    warn("This browser keeps nothing for this page: download your votes before you close or reload it.");
  }

  function warn(text) {
    $("alert").textContent = text;
    $("alert").hidden = false;
  }

  // ------------------------------------------------------------------------------------------------------- texts, safely
  // Characters that are not seen, or that would change how others are shown: controls, overrides and isolates of
  // direction, invisible spaces and tags, halves of pairs. Marks that Arabic, Hebrew, Persian and emoji need stay.
  const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]|[\ud800-\udfff]/gu;

  function show(box, text) {
    text = text.replace(/\r\n/g, "\n");
    box.replaceChildren();
    if (text === "") {
      const empty = document.createElement("span");
      empty.className = "empty";
      empty.textContent = "(nothing)";
      box.append(empty);
    }
    let from = 0;
    for (const found of text.matchAll(UNSEEN)) {
      box.append(text.slice(from, found.index));
      const mark = document.createElement("span");
      mark.className = "mark";
      mark.textContent = `U+${found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
      box.append(mark);
      from = found.index + found[0].length;
    }
    box.append(text.slice(from));
  }

  function turn([who, text]) {
    const box = document.createElement("div");
    const words = document.createElement("div");
    words.className = "text";
    words.dir = "auto";
    show(words, text);
    if (who !== "") {
      const label = document.createElement("h3");
      label.textContent = who;
      box.append(label);
    }
    box.append(words);
    return box;
  }

  function paragraphs(box, parts) {
    box.replaceChildren(
      ...parts.map((part) => {
        const line = document.createElement("p");
        line.className = "lines";
        line.textContent = part;
        return line;
      }),
    );
  }

  // -------------------------------------------------------------------------------------------------------------- time
  // Seconds that a pair was on the screen, without those when the page was hidden.
  let since = null;
  let spent = 0;
  let shown = 0; // when the pair appeared

  const begin = () => (since = document.hidden ? null : performance.now());
  function pause() {
    if (since !== null) spent += (performance.now() - since) / 1000;
    since = null;
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? pause() : $("judge").hidden || begin()));

  // ------------------------------------------------------------------------------------------------------------- screens
  function screen(id) {
    for (const each of ["begin", "judge", "end"]) $(each).hidden = each !== id;
    $("who").textContent = id === "begin" ? "" : name;
    $("bar").hidden = id === "begin";
    window.scrollTo(0, 0);
  }

  function progress() {
    const done = mine.votes.filter((v) => v !== null).length;
    $("bar").value = done;
    $("count").textContent = mine.at < items.length ? `${mine.at + 1} of ${items.length}` : `${done} of ${items.length} done`;
  }

  function draw() {
    since = null;
    spent = 0;
    progress();
    if (mine.at === items.length) return finish();
    const item = items[mine.at];
    const guide = page.guides[item.guide];
    const vote = mine.votes[mine.at];
    screen("judge");
    $("question").textContent = guide.question;
    paragraphs($("guide-text"), guide.paragraphs);
    $("prompt").replaceChildren(...item.prompt.map(turn));
    show($("left"), item.left);
    show($("right"), item.right);
    for (const button of document.querySelectorAll("[data-vote]")) {
      button.setAttribute("aria-pressed", String(vote !== null && vote.vote === button.dataset.vote));
    }
    $("back").disabled = mine.at === 0;
    $("next").disabled = vote === null;
    $("question").focus({ preventScroll: true });
    shown = performance.now();
    begin();
  }

  function finish() {
    screen("end");
    const counts = { left: 0, right: 0, tie: 0, skip: 0 };
    for (const v of mine.votes) if (v !== null) counts[v.vote] += 1;
    const judged = counts.left + counts.right + counts.tie;
    const left = items.length - judged - counts.skip;
    $("sum").textContent =
      `You judged ${judged} of ${items.length} pairs and skipped ${counts.skip}.` + (left ? ` ${left} have no vote.` : "");
    $("file").textContent = fileName();
    $("done").focus({ preventScroll: true });
  }

  // --------------------------------------------------------------------------------------------------------------- votes
  const early = () => performance.now() - shown < QUICK;

  function vote(choice) {
    if (early()) return;
    pause();
    const before = mine.votes[mine.at]; // time adds up where a vote is given anew
    const seconds = Math.round(((before === null ? 0 : before.seconds) + spent) * 10) / 10;
    mine.votes[mine.at] = { vote: choice, seconds };
    $("said").textContent = `Pair ${mine.at + 1}: ${VOTES[choice]}.`;
    move(mine.at + 1);
  }

  function go(step) {
    const to = mine.at + step;
    if (to < 0 || to > items.length || (step > 0 && mine.votes[mine.at] === null)) return;
    move(to);
  }

  function move(to) {
    mine.at = to;
    save();
    draw();
  }

  // ------------------------------------------------------------------------------------------------------------ download
  const fileName = () => `votes_${hash}_${name.replace(/[^\p{L}\p{N}-]+/gu, "_")}.json`;

  function download() {
    const votes = mine.votes.flatMap((v, item) => (v === null ? [] : [{ item, vote: v.vote, seconds: v.seconds }]));
    const file = { format: "gipo_mc votes 1", page: hash, voter: name, pairs: items.length, votes };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1) + "\n"], { type: "application/json" }));
    link.download = fileName();
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // --------------------------------------------------------------------------------------------------------------- begin
  const NAME = /^[\p{L}\p{M}\p{N} ._\-]{1,40}$/u;
  const typed = () => $("name").value.normalize("NFC").trim();
  const state = (who) => (Object.hasOwn(kept.voters, who) ? kept.voters[who] : null);

  function label() {
    const known = state(typed());
    $("start").textContent = known === null ? "Begin" : known.at < items.length ? `Continue at pair ${known.at + 1}` : "Continue";
  }

  function welcome() {
    pause();
    mine = null;
    $("count").textContent = `${items.length} pairs`;
    $("name").value = kept.last;
    label();
    screen("begin");
  }

  $("name").addEventListener("input", () => {
    $("name-wrong").textContent = "";
    label();
  });
  $("form").noValidate = true; // the page says itself what is wrong
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    name = typed();
    if (!NAME.test(name)) {
      $("name-wrong").textContent = name === "" ? "Please write your name." : "Please use letters, digits, spaces and . _ - only.";
      $("name").focus();
      return;
    }
    mine = state(name) ?? { at: 0, votes: items.map(() => null) };
    kept = { ...kept, last: name, voters: Object.fromEntries([...Object.entries(kept.voters), [name, mine]]) };
    move(mine.at);
  });

  // ------------------------------------------------------------------------------------------------------ buttons, keys
  for (const button of document.querySelectorAll("[data-vote]")) button.addEventListener("click", () => vote(button.dataset.vote));
  $("back").addEventListener("click", () => go(-1));
  $("next").addEventListener("click", () => go(1));
  $("end-back").addEventListener("click", () => go(-1));
  for (const id of ["download", "part"]) $(id).addEventListener("click", download);
  for (const id of ["leave", "end-leave"]) {
    $(id).addEventListener("click", () => {
      kept.last = "";
      save();
      welcome();
      $("name").focus();
    });
  }
  $("keys").addEventListener("change", () => {
    kept.keys = $("keys").checked;
    save();
  });

  const KEYS = {
    a: () => vote("left"), arrowleft: () => vote("left"), b: () => vote("right"), arrowright: () => vote("right"),
    t: () => vote("tie"), s: () => vote("skip"), z: () => go(-1), backspace: () => go(-1), n: () => go(1),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing || mine === null || !kept.keys) return;
    const key = event.key.toLowerCase();
    const known = Object.hasOwn(KEYS, key) && ($("judge").hidden ? ["z", "backspace"].includes(key) : true);
    if (!known) return;
    event.preventDefault();
    if (!event.repeat) KEYS[key](); // a key that is held down is one vote
  });

  // Another tab of the same page has voted: what it kept is what counts, and this tab shows it.
  window.addEventListener("storage", (event) => {
    if (event.key !== shelf || event.newValue === null) return;
    load();
    if (mine !== null && state(name) !== null) {
      mine = state(name);
      warn("This page is open in another tab too, and its votes were taken over. Please vote in one of them.");
      draw();
    }
  });
  window.addEventListener("beforeunload", (event) => {
    if (!keeps && mine !== null && mine.votes.some((v) => v !== null)) event.preventDefault();
  });

  load();
  $("keys").checked = kept.keys;
  welcome();
})();
