//! Where answers of the size of memory are made: off the threads that talk, two at a time, with a short queue.
//!
//! So nobody can make the sidecar use much memory by asking often, and the recording keeps a processor. It must not know what is made.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::response::Response;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

use super::answer::{Made, Refusal};

/// Answers that are made at once.
const AT_ONCE: usize = 2;
/// Requests that may wait.
const QUEUE: usize = 8;
/// When to come again, in seconds: a large answer takes about that.
const COME_AGAIN_SECONDS: u64 = 5;

/// See the head of this file.
#[derive(Debug)]
pub struct Workshop {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Default for Workshop {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), waiting: AtomicUsize::new(0) }
    }
}

/// One that waits; leaves the queue also when its client has gone.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workshop {
    /// Makes an answer when there is a place.
    ///
    /// # Errors
    /// What `make` says; or that the queue is full.
    pub async fn make(
        &self,
        make: impl FnOnce() -> Result<Made, Refusal> + Send + 'static,
    ) -> Result<Response, Refusal> {
        let place = self.place().await?;
        // The place goes with the work: it ends when it ends, whether or not anybody still waits for it.
        let work = spawn_blocking(move || (make(), place));
        match work.await {
            Ok((made, place)) => made.map(|made| made.respond(Some(place))),
            Err(error) => Err(Refusal::fault(&error)),
        }
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(place);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        let busy =
            || Refusal::later("too many large answers are being made: ask again later", COME_AGAIN_SECONDS);
        if before >= QUEUE {
            return Err(busy());
        }
        Arc::clone(&self.places).acquire_owned().await.map_err(|_| busy())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use axum::response::IntoResponse as _;

    use super::*;

    /// Two are made, eight wait, the next is told to come again; a body that is not read keeps its place.
    #[tokio::test]
    async fn the_queue_is_bounded_and_places_come_back() {
        let workshop = Arc::new(Workshop::default());
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(std::sync::Mutex::new(held));
        let ask = || {
            let (workshop, held) = (Arc::clone(&workshop), Arc::clone(&held));
            tokio::spawn(async move {
                let wait = move || {
                    let _ = held.lock().unwrap().recv();
                    Ok(Made::new("text/plain", vec![b'x'; 196_608]))
                };
                workshop.make(wait).await
            })
        };
        let asked: Vec<_> = (0..AT_ONCE + QUEUE).map(|_| ask()).collect();
        while workshop.waiting.load(Ordering::Relaxed) < QUEUE {
            tokio::task::yield_now().await;
        }
        let refused = ask().await.unwrap().unwrap_err().into_response();
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.headers()["retry-after"], "5");
        (0..AT_ONCE + QUEUE).for_each(|_| release.send(()).unwrap());
        for answer in asked {
            let response = answer.await.unwrap().unwrap();
            let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            assert_eq!(bytes.len(), 196_608);
        }
        assert_eq!(
            (workshop.waiting.load(Ordering::Relaxed), workshop.places.available_permits()),
            (0, AT_ONCE)
        );
    }

    #[tokio::test]
    async fn who_leaves_the_queue_frees_it() {
        let workshop = Workshop::default();
        let _both = Arc::clone(&workshop.places).acquire_many_owned(2).await.unwrap();
        let waiting = workshop.make(|| Ok(Made::default()));
        assert!(tokio::time::timeout(std::time::Duration::from_millis(5), waiting).await.is_err());
        assert_eq!(workshop.waiting.load(Ordering::Relaxed), 0);
    }
}
