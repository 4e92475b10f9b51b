//! The tests' hub as a program, for other programs to talk to.
//!
//!     cargo run -p eyas-hub --example fake_hub -- PORT OWNER=TOKEN ... OWNER/GATED ...
//!
//! Port 0 takes a free one; the address is the first line that is printed. Lists of files come three at a time and files
//! beyond 64 KiB in parts, so that clients have to know both.

#[path = "../tests/hub/fake/mod.rs"]
mod fake;

use fake::{Account, FakeHub};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let port = arguments.next().and_then(|port| port.parse().ok()).unwrap_or(0);
    let hub = FakeHub::start(port);
    {
        let mut state = hub.state();
        (state.page, state.chunk) = (3, Some(1 << 16));
        for account in arguments {
            match account.split_once('=') {
                Some((name, token)) => {
                    state.accounts.insert(token.into(), Account { name: name.into(), may_write: true });
                }
                // A repository whose terms have to be accepted.
                None => {
                    state.add(
                        "models",
                        &account,
                        &[("config.json", b"{}"), ("model.safetensors", b"weights")],
                    );
                    state.repo("models", &account).gated = true;
                }
            }
        }
    }
    println!("{}", hub.endpoint());
    loop {
        std::thread::park();
    }
}
