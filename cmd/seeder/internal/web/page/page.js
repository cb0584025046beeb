"use strict";
// Asks for this page again while somebody looks at it, and puts what differs into
// place, so that focus, scrolling and what is unfolded stay as they are. Everything is
// escaped where the page is made.
(() => {
  const view = () => document.getElementById("view");
  const asof = document.getElementById("asof");
  const pause = document.getElementById("pause");
  const trouble = document.getElementById("trouble");
  let paused = false, etag = "", failures = 0, timer = 0, asking = false;

  // put makes have, an element or a text, what want is.
  function put(have, want) {
    if (have.nodeType !== want.nodeType || have.nodeName !== want.nodeName) {
      have.replaceWith(want);
      return;
    }
    if (have.nodeType !== Node.ELEMENT_NODE) {
      if (have.data !== want.data) have.data = want.data;
      return;
    }
    for (const { name } of [...have.attributes]) {
      if (name !== "open" && !want.hasAttribute(name)) have.removeAttribute(name);
    }
    for (const { name, value } of want.attributes) {
      if (have.getAttribute(name) !== value) have.setAttribute(name, value);
    }
    // What has a key is the same element wherever it stands: what is unfolded in it stays so.
    // It is moved only where the order has changed, since moving it would take its focus.
    const keyOf = (e) => e?.dataset?.key;
    const wanted = [...want.childNodes], keys = new Set(wanted.map(keyOf));
    for (const e of [...have.childNodes]) if (keyOf(e) && !keys.has(keyOf(e))) e.remove();
    wanted.forEach((child, i) => {
      const at = have.childNodes[i], key = keyOf(child);
      const same = key ? [...have.childNodes].slice(i).find((e) => keyOf(e) === key) : at;
      if (!same || !key && keyOf(at)) {
        have.insertBefore(child, at ?? null);
        return;
      }
      while (have.childNodes[i] !== same && !keyOf(have.childNodes[i])) have.childNodes[i].remove();
      if (have.childNodes[i] !== same) have.insertBefore(same, have.childNodes[i]);
      put(same, child);
    });
    while (have.childNodes.length > wanted.length) have.lastChild.remove();
  }

  // What is copied is on the button. Without a clipboard, as on a page that did not come by
  // TLS or from this host, the text beside it is selected.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.(".copy");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling);
    }
  });
  document.addEventListener("mouseover", (event) => {
    const time = event.target.closest?.("time");
    if (time) time.title = new Date(time.dateTime).toLocaleString() + ", local time";
  });

  async function ask() {
    const answer = await fetch(location.href.split("#")[0], {
      headers: etag ? { "If-None-Match": etag } : {}, cache: "no-store", signal: AbortSignal.timeout(20000),
    });
    if (answer.status !== 304) {
      if (!answer.ok) throw new Error(answer.status + " " + answer.statusText);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (page.documentElement.dataset.version !== document.documentElement.dataset.version) {
        location.reload(); // another build of the daemon
        return;
      }
      etag = answer.headers.get("ETag") || "";
      document.title = page.title;
      const focused = document.activeElement;
      put(view(), page.getElementById("view"));
      if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
    }
    const now = new Date(answer.headers.get("Date") || Date.now());
    asof.dateTime = now.toISOString();
    asof.textContent = now.toISOString().slice(11, 19);
  }

  function next() {
    clearTimeout(timer);
    if (paused || document.hidden || asking) return;
    const calm = view().dataset.busy === "true" ? 1000 : 2000;
    const large = document.getElementById("matrix") ? 2 : 1;
    timer = setTimeout(look, failures ? Math.min(2000 * 2 ** failures, 30000) : calm * large);
  }

  async function look() {
    if (asking) return;
    asking = true;
    try {
      await ask();
      failures = 0;
      trouble.textContent = "";
    } catch (err) {
      if (failures++ === 1) trouble.textContent = "This node does not answer (" + err.message + "). The page shows the state of " + asof.textContent + " UTC; retrying.";
    }
    asking = false;
    next();
  }

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume updates" : "Pause updates";
    if (paused) clearTimeout(timer);
    else look();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && !paused) look();
    else clearTimeout(timer);
  });
  document.documentElement.classList.add("script");
  document.getElementById("reload").hidden = true;
  pause.hidden = false;
  next();
})();
