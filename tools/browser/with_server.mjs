/**
 * Starts a real server on a free port, runs the tests that need one, and stops it.
 *
 *     node with_server.mjs ../../target/debug/eyas serve --model BASE --adapter one=FOLDER --adapter two=FOLDER
 */
import { spawn } from "node:child_process";

const START_MS = 120_000;
const [program, ...args] = process.argv.slice(2);
if (!program) {
  console.error("usage: node with_server.mjs PROGRAM [ARGUMENT]...");
  process.exit(2);
}

const server = spawn(program, [...args, "--port", "0"], { stdio: ["ignore", "pipe", "pipe"] });
try {
  const url = await addressOf(server);
  console.log(`server at ${url}`);
  const tests = spawn(process.execPath, ["--test", "pages/real.test.js"], {
    cwd: import.meta.dirname,
    env: { ...process.env, EYAS_URL: url },
    stdio: "inherit",
  });
  process.exitCode = await new Promise((resolve) => tests.on("exit", (code) => resolve(code ?? 1)));
} catch (error) {
  console.error(`${error}`);
  process.exitCode = 1;
} finally {
  server.kill("SIGTERM");
}

/** The address that a server says it listens on. @param {import("node:child_process").ChildProcess} child */
function addressOf(child) {
  return new Promise((resolve, reject) => {
    let said = "";
    const listen = (part) => {
      said += part;
      const url = /http:\/\/[\w.:[\]]+:\d+/.exec(said)?.[0];
      if (url) resolve(url);
    };
    child.stdout?.on("data", listen);
    child.stderr?.on("data", listen);
    child.on("error", reject);
    child.on("exit", (code) => reject(new Error(`the server ended with ${code}: ${said}`)));
    setTimeout(() => reject(new Error(`no address within ${START_MS / 1000} s: ${said}`)), START_MS).unref();
  });
}
