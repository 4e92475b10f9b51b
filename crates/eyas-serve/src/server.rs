//! Starting and stopping.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::answerer::Answerer;
use crate::config::Config;
use crate::http::{App, connection, router};
use crate::metrics::Metrics;
use crate::models::Models;
use crate::queue::Queue;
use crate::worker;
use crate::{Error, Result};

/// Requests that are turned into tokens, and read by the safety layer, at a time.
const READERS: usize = 2;

/// What stops a server.
pub type Stop = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Serves until `stop` is ready. The engine runs on the calling thread, connections on others.
///
/// Then nothing new is taken, running answers have [`Config::grace`] to end, and what is left is cut off with an error.
///
/// # Errors
/// When a setting cannot be served with, the address cannot be listened on, or the system gives no threads.
pub fn serve(
    config: Config,
    models: Models,
    answerer: &mut dyn Answerer,
    address: SocketAddr,
    stop: Stop,
    on_ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    config.validate()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let listener =
        runtime.block_on(TcpListener::bind(address)).map_err(|source| Error::Bind { address, source })?;
    let bound = listener.local_addr()?;
    let queue = Arc::new(Queue::new(config.limits.max_queue));
    let metrics = Arc::new(Metrics::new());
    let (limits, grace) = (config.limits, config.grace);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let app = Arc::new(App {
        config,
        models,
        queue: Arc::clone(&queue),
        metrics: Arc::clone(&metrics),
        slots: answerer.free_slots(),
        readers: Arc::new(Semaphore::new(READERS)),
        created: now.as_secs(),
    });
    let connections = runtime.spawn({
        let (queue, metrics, served) = (Arc::clone(&queue), Arc::clone(&metrics), Arc::clone(&app));
        async move {
            let open = connection::accept(listener, router(served), limits, metrics, stop).await;
            queue.drain();
            // Open connections end with their answers; those are cut off after a while, and told so.
            let ended = open.shutdown();
            tokio::pin!(ended);
            tokio::select! {
                () = &mut ended => {}
                () = tokio::time::sleep(grace) => {
                    queue.cut();
                    let _ = tokio::time::timeout(Duration::from_secs(1), ended).await;
                }
            }
            queue.cut();
        }
    });
    on_ready(bound);
    // If the engine's thread fails, nobody may wait for it.
    let guard = CutOnDrop(&queue);
    worker::run(answerer, &queue, &metrics);
    drop(guard);
    let _ = runtime.block_on(connections);
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Some(storage) = &app.config.storage {
        storage.finish();
    }
    Ok(())
}

/// Ready when the process is asked to stop: Ctrl-C, or SIGTERM. A second time ends the process at once.
pub fn signal() -> Stop {
    Box::pin(async {
        asked_to_stop().await;
        tokio::spawn(async {
            asked_to_stop().await;
            std::process::exit(130);
        });
    })
}

async fn asked_to_stop() {
    #[cfg(unix)]
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = pending::<()>();
    tokio::select! {
        result = tokio::signal::ctrl_c() => if result.is_err() { pending::<()>().await },
        () = terminated => {}
    }
}

struct CutOnDrop<'a>(&'a Queue);

impl Drop for CutOnDrop<'_> {
    fn drop(&mut self) {
        self.0.cut();
    }
}
