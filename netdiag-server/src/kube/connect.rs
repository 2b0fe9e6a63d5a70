//! A client from a kubeconfig or from inside the cluster, with errors that name the file, the context and the way out.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use ::kube::{Client, Config};

use super::error;
use crate::ask::SourceError;

/// Which cluster, and as whom.
#[derive(Debug, Clone, Default)]
pub struct AccessOptions {
    /// A file; without it `KUBECONFIG`, then `~/.kube/config`, then the Pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the file; without it the current one.
    pub context: Option<String>,
}

/// A way to the API. Making it sends nothing.
#[derive(Clone)]
pub struct Access {
    pub client: Client,
    /// The kubeconfig's context; empty inside a cluster, which is then named by its `kube-system` namespace.
    pub context: String,
    /// `https://10.0.0.1:6443`, for messages.
    pub server: String,
    /// The credentials, for proving who asks.
    pub(super) config: Arc<Config>,
}

/// Long enough for a loaded API server in another region, short enough for somebody who waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub async fn connect(options: &AccessOptions) -> Result<Access, SourceError> {
    let (mut config, context) = config(options).await?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let kept = Arc::new(config.clone());
    let client = Client::try_from(config).map_err(|error| SourceError {
        message: format!(
            "cannot use the credentials {} for {server}: {}; check the certificates and the exec plugin of that user",
            in_context(&context),
            error::innermost(&error)
        ),
    })?;
    Ok(Access { client, context, server, config: kept })
}

async fn config(options: &AccessOptions) -> Result<(Config, String), SourceError> {
    let in_cluster = options.kubeconfig.is_none()
        && options.context.is_none()
        && std::env::var_os("KUBECONFIG").is_none()
        && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    if in_cluster {
        let config = Config::incluster().map_err(|error| SourceError {
            message: format!(
                "cannot use this Pod's service account: {}; mount it (automountServiceAccountToken: true)",
                error::innermost(&error)
            ),
        })?;
        return Ok((config, String::new()));
    }
    let file = match &options.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    }
    .map_err(|error| unreadable(&error))?;
    let contexts: Vec<String> = file.contexts.iter().map(|context| context.name.clone()).collect();
    let context = options.context.clone().or_else(|| file.current_context.clone()).unwrap_or_default();
    let selected = KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
    if !contexts.contains(&context) {
        let named = if context.is_empty() {
            "no context is current".to_owned()
        } else {
            format!("there is no context {context:?}")
        };
        let message = format!("{named} in the kubeconfig; choose one with --context: {}", contexts.join(", "));
        return Err(SourceError { message });
    }
    let config = Config::from_custom_kubeconfig(file, &selected).await.map_err(|error| SourceError {
        message: format!("the kubeconfig's context {context:?} cannot be used: {error}"),
    })?;
    Ok((config, context))
}

fn unreadable(error: &KubeconfigError) -> SourceError {
    let message = match error {
        KubeconfigError::ReadConfig(source, path) => format!(
            "cannot read the kubeconfig {}: {source}; give one with --kubeconfig or KUBECONFIG, or ask a bundle with --bundle",
            path.display()
        ),
        KubeconfigError::FindPath => {
            "there is no kubeconfig: give one with --kubeconfig or KUBECONFIG, or ask a bundle with --bundle".to_owned()
        }
        KubeconfigError::Parse(source) => {
            let first = source.to_string().lines().next().unwrap_or_default().to_owned();
            format!("the kubeconfig is not valid YAML: {first}")
        }
        other => format!("the kubeconfig cannot be used: {other}"),
    };
    SourceError { message }
}

fn in_context(context: &str) -> String {
    if context.is_empty() { "of this Pod".to_owned() } else { format!("of context {context:?}") }
}
