//! `netdiag`, also as `kubectl netdiag`: see [`netdiag_server::cli`].

use std::process::ExitCode;

use netdiag_server::cli::{self, Cli};

fn main() -> ExitCode {
    // The only TLS implementation that is compiled in; whoever is first may install it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::from_process();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("netdiag: cannot start: {error}");
            return ExitCode::from(cli::EXIT_FAILED);
        }
    };
    let code = runtime.block_on(cli::run(cli));
    // A name that is still being looked up must not hold the process.
    runtime.shutdown_background();
    code
}
