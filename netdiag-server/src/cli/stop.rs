//! Who is told to stop still tidies up: a proof of who asks stays in the cluster until it is withdrawn.

use tokio::signal::unix::{SignalKind, signal};

use super::Failure;

/// Until Ctrl-C or SIGTERM. From its first call on neither ends the program by itself: all that may take long after it has to wait for
/// them, too.
pub(super) async fn told() -> Result<(), Failure> {
    let wait = |kind| signal(kind).map_err(|error| Failure(format!("cannot wait for signals: {error}")));
    let (mut terminate, mut interrupt) = (wait(SignalKind::terminate())?, wait(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// What comes of it, or an error once somebody has told it to stop.
pub(super) async fn unless_told<T, E>(
    asking: impl Future<Output = Result<T, E>>,
    error: impl FnOnce(String) -> E,
) -> Result<T, E> {
    either(asking, told(), error).await
}

async fn either<T, E>(
    asking: impl Future<Output = Result<T, E>>,
    told: impl Future<Output = Result<(), Failure>>,
    error: impl FnOnce(String) -> E,
) -> Result<T, E> {
    tokio::select! {
        answer = asking => answer,
        told = told => Err(error(match told {
            Ok(()) => "stopped before there was an answer".to_owned(),
            Err(Failure(why)) => why,
        })),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn who_is_told_to_stop_says_so() {
        let stopped = either(pending::<Result<(), String>>(), ready(Ok(())), |why| why).await;
        assert_eq!(stopped, Err("stopped before there was an answer".to_owned()));
        let deaf = ready(Err(Failure("no signals".to_owned())));
        let stopped = either(pending::<Result<(), String>>(), deaf, |why| why).await;
        assert_eq!(stopped, Err("no signals".to_owned()));
    }

    #[tokio::test]
    async fn who_is_not_told_has_the_answer() {
        assert_eq!(either(ready(Ok::<_, String>(1)), pending(), |why| why).await, Ok(1));
    }
}
