/**
 * Tell the other tabs of this browser when a page has been loaded: another user may have logged in.
 *
 * Loading this module tells them. The storage event reaches each other tab of this site, but not this one.
 */

const KEY = "page-loaded";

localStorage.setItem(KEY, crypto.randomUUID());

/** @param {() => void} action */
export function whenAnotherPageLoads(action) {
  addEventListener("storage", ({ key }) => {
    if (key === KEY) action();
  });
}
