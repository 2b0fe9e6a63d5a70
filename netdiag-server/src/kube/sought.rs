//! netdiag's server for who stays longer than a time without the API server: it is looked for until it is found.

use tokio::sync::OnceCell;

use super::Access;
use super::forward::{ForwardError, Server};

/// A server that is found by the first question that reaches the API server.
pub struct Sought {
    access: Access,
    server: OnceCell<Server>,
}

impl Sought {
    /// One that is found already, or none yet.
    pub fn new(access: Access, found: Option<Server>) -> Self {
        Self { access, server: OnceCell::new_with(found) }
    }

    /// The server; why it is not there concerns this question alone.
    pub async fn server(&self) -> Result<&Server, ForwardError> {
        let find = async || match Server::find(&self.access).await {
            Ok(found) => found.map_err(ForwardError::Unreached),
            Err(error) => Err(ForwardError::Unreached(error.message)),
        };
        self.server.get_or_try_init(find).await
    }

    /// As [`Server::withdraw`].
    pub async fn withdraw(&self) {
        if let Some(server) = self.server.get() {
            server.withdraw().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use ::kube::Config;
    use ::kube::client::Body;
    use http::{Request, Response};
    use tower::BoxError;

    use super::*;

    #[tokio::test]
    async fn what_is_away_at_first_is_found_once() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let fake_api_server = tower::service_fn(move |_: Request<Body>| {
            let is_away = counted.fetch_add(1, Ordering::Relaxed) == 0;
            let ready = serde_json::json!({"conditions": [{"type": "Ready", "status": "True"}]});
            let pods = serde_json::json!({"items": [{"metadata": {"name": "netdiag-0"}, "status": ready}]});
            std::future::ready(if is_away {
                Err(BoxError::from("connection refused"))
            } else {
                Ok(Response::new(Body::from(pods.to_string().into_bytes())))
            })
        });
        let access = Access {
            client: ::kube::Client::new(fake_api_server, "default"),
            context: String::new(),
            server: String::new(),
            config: Arc::new(Config::new("https://10.0.0.1:6443".parse().expect("an address"))),
        };
        let sought = Sought::new(access, None);
        let Err(ForwardError::Unreached(why)) = sought.server().await else { panic!("nobody answered") };
        assert!(why.contains("connection refused"), "{why}");
        for _ in 0..2 {
            assert!(sought.server().await.is_ok());
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }
}
