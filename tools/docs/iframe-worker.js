// Browsers start no worker from a file. There, the search of the pages runs in a frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      addEventListener("message", (event) => {
        if (event.source !== inside) return;
        const copy = new MessageEvent("message", {data: event.data});
        this.dispatchEvent(copy);
        if (this.onmessage) this.onmessage(copy);
      });
      inside.document.open();
      inside.document.write("<!doctype html><body><script>" +
        "postMessage = parent.postMessage.bind(parent);" +
        "importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((done) => {" +
        "  const script = document.createElement('script');" +
        "  script.src = url; script.onload = done; document.body.append(script); })), Promise.resolve());" +
        "</" + "script><script src=\"" + new URL(url, location.href) + "\"></" + "script></body>");
      inside.document.close();
      this.ready = new Promise((done) => { inside.onload = done; });
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", {data})));
    }
    terminate() { this.frame.remove(); }
  };
}
