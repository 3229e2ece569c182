// A client of overlayd for Node: requests are pipelined over one connection, and events come in between.
//
//   node client.mts /run/overlayd/overlayd.sock
//
// The contract is docs/protocol.md.  The types stand in comments, so that the file runs as it is, under another name
// (client.mjs) also on a Node that does not strip types.
import net from "node:net";

const MAX_BODY = 8 << 20; // bytes of a frame's body, both ways

/** An answer `err`: `code` is stable, the message is for a person. */
export class Refusal extends Error {
  /** @param {string} message @param {string} code */
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

/** One connection.  Calls may be made at once: each gets its own answer. */
export class Client {
  /** @param {net.Socket} socket @param {(event: object) => void} onEvent */
  constructor(socket, onEvent) {
    this.socket = socket;
    this.onEvent = onEvent;
    this.next = 1;
    /** @type {Map<number, {resolve: (answer: any) => void, reject: (error: Error) => void}>} */
    this.waits = new Map();
    /** @type {Buffer[]} */
    this.pieces = [];
    this.size = 0;
    socket.on("data", (data) => this.receive(data));
    socket.on("error", (error) => this.lose(error));
    socket.on("close", () => this.lose(new Error("overlayd closed the connection")));
  }

  /** @param {string} path @returns {Promise<Client>} */
  static connect(path, onEvent = (/** @type {object} */ event) => {}) {
    return new Promise((resolve, reject) => {
      const socket = net.createConnection(path, () => resolve(new Client(socket, onEvent)));
      socket.once("error", reject);
    });
  }

  /**
   * Send a request, which has its op, and wait for its answer.  Throws a Refusal for `err`.  After a lost connection it
   * is not known whether the request was done: send it again, every request may be repeated.
   * @param {object} request
   * @returns {Promise<any>}
   */
  call(request) {
    const id = this.next++; // below 2^53, so that a JavaScript number holds it
    const body = Buffer.from(JSON.stringify({ frame: "request", id, request }));
    if (body.length > MAX_BODY) return Promise.reject(new Error("the request is larger than a frame"));
    const length = Buffer.alloc(4);
    length.writeUInt32LE(body.length);
    return new Promise((resolve, reject) => {
      this.waits.set(id, { resolve, reject });
      this.socket.write(Buffer.concat([length, body]));
    });
  }

  close() {
    this.socket.end();
  }

  /** @param {Buffer} data */
  receive(data) {
    this.pieces.push(data);
    this.size += data.length;
    if (this.size < 4) return;
    let held = this.pieces.length > 1 ? Buffer.concat(this.pieces) : this.pieces[0];
    while (held.length >= 4) {
      const length = held.readUInt32LE(0);
      if (length > MAX_BODY) return this.socket.destroy(new Error("a frame that is too large"));
      if (held.length < 4 + length) break;
      this.take(JSON.parse(held.toString("utf8", 4, 4 + length)));
      held = held.subarray(4 + length);
    }
    this.pieces = [held];
    this.size = held.length;
  }

  /** @param {any} frame */
  take(frame) {
    if (frame.frame === "event") return this.onEvent(frame);
    const wait = this.waits.get(frame.id);
    this.waits.delete(frame.id);
    if (frame.response.result === "err") wait?.reject(new Refusal(frame.response.message, frame.response.code));
    else wait?.resolve(frame.response);
  }

  /** @param {Error} error */
  lose(error) {
    for (const wait of this.waits.values()) wait.reject(error);
    this.waits.clear();
  }
}

const client = await Client.connect(process.argv[2]);
console.log("hello", (await client.call({ op: "hello" })).version);
const set = { op: "set_local_node_id", node_id: 7 };
await Promise.all(Array.from({ length: 100 }, () => client.call(set))); // at once, and each gets its own answer
console.log("status", (await client.call({ op: "status" })).node_id);
try {
  await client.call({ op: "allocate_ip", service: "nosuch", join_global: false });
} catch (error) {
  console.log("refused", error instanceof Refusal && error.code === "not_set_up");
}
client.close();
