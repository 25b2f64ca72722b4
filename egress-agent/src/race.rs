//! Several attempts at the same thing, each given a head start over the next: how name servers are asked and how
//! addresses are dialled.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time;

/// Makes `attempt` at the candidates in order. The next attempt begins when one fails, or when `head_start` has passed
/// since the last one began; the attempts before it go on. The first success wins and the others are dropped (RFC 8305,
/// section 5).
///
/// # Errors
/// All attempts failed: their errors in the order in which they failed. None if there were no candidates.
pub(crate) async fn staggered<C, T, E, F>(
    candidates: impl IntoIterator<Item = C>,
    head_start: Duration,
    mut attempt: impl FnMut(C) -> F,
) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting = candidates.into_iter().peekable();
    let mut running = FuturesUnordered::new();
    let mut errors = Vec::new();
    loop {
        if running.is_empty() {
            match waiting.next() {
                Some(candidate) => running.push(attempt(candidate)),
                None => return Err(errors),
            }
        }
        let more = waiting.peek().is_some();
        let overdue = tokio::select! {
            biased;
            ended = running.next() => match ended {
                Some(Ok(won)) => return Ok(won),
                Some(Err(error)) => {
                    errors.push(error);
                    true
                }
                None => false,
            },
            () = time::sleep(head_start), if more => true,
        };
        if overdue && let Some(candidate) = waiting.next() {
            running.push(attempt(candidate));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap()
            .block_on(test)
    }

    #[test]
    fn a_failure_starts_the_next_attempt_at_once_and_errors_keep_their_order() {
        let result: Result<(), Vec<u8>> = run(staggered([1_u8, 2, 3], NEVER, async |n| Err(n)));
        assert_eq!(result, Err(vec![1, 2, 3]));
        let result: Result<(), Vec<u8>> = run(staggered([0_u8; 0], NEVER, async |n| Err(n)));
        assert_eq!(result, Err(vec![]));
    }

    #[test]
    fn a_silent_attempt_is_overtaken_after_its_head_start_and_goes_on() {
        let started = RefCell::new(Vec::new());
        let open = tokio::sync::Notify::new();
        let won: Result<u8, Vec<()>> = run(staggered([1_u8, 2], Duration::from_millis(5), |n| {
            started.borrow_mut().push(n);
            let open = &open;
            async move {
                if n == 1 {
                    open.notified().await;
                    return Ok(1);
                }
                // The second one lets the first one win, which proves that it was still running.
                open.notify_one();
                std::future::pending().await
            }
        }));
        assert_eq!(won, Ok(1));
        assert_eq!(*started.borrow(), [1, 2]);
    }

    #[test]
    fn the_first_success_ends_it_before_the_others_begin() {
        let started = RefCell::new(0);
        let won: Result<u8, Vec<()>> = run(staggered([1_u8, 2, 3], NEVER, |n| {
            *started.borrow_mut() += 1;
            async move { Ok(n) }
        }));
        assert_eq!((won, *started.borrow()), (Ok(1), 1));
    }
}
