/**
 * Pages of one browser tell each other when one has been loaded: who is logged in may have changed.
 *
 * Loading this is telling it. The storage event reaches every other tab of this site, and not this one.
 */

const KEY = "page-loaded";

localStorage.setItem(KEY, crypto.randomUUID());

/** @param {() => void} action */
export function whenAnotherPageLoads(action) {
  addEventListener("storage", ({ key }) => {
    if (key === KEY) action();
  });
}
