// Asks a gRPC server many times, with bytes that it does not look at, and prints what became of it.
//
// Usage: node client.js ADDRESS METHOD FILE CALLS AT_A_TIME DEADLINE_SECONDS
"use strict";

const fs = require("fs");
const grpc = require("@grpc/grpc-js");

const [address, method, file, calls, most, seconds] = process.argv.slice(2);
const request = fs.readFileSync(file);
const same = (bytes) => bytes;
const client = new grpc.Client(address, grpc.credentials.createInsecure(), {
  "grpc.max_receive_message_length": 64 << 20,
  "grpc.max_send_message_length": 64 << 20,
});
const found = { codes: {}, texts: {}, sizes: {} };
const count = (what, key) => {
  found[what][key] = (found[what][key] || 0) + 1;
};

let left = Number(calls);

function one() {
  return new Promise((done) => {
    const deadline = Date.now() + 1000 * Number(seconds);
    const told = (error, answer) => {
      count("codes", error ? error.code : 0);
      count("texts", error ? error.details : "");
      if (!error) count("sizes", answer.length);
      done();
    };
    client.makeUnaryRequest(method, same, same, request, new grpc.Metadata(), { deadline }, told);
  });
}

async function some() {
  while (left-- > 0) await one();
}

Promise.all(Array.from({ length: Number(most) }, some)).then(() => {
  client.close();
  console.log(JSON.stringify(found));
});
