//! The clients against a server that each test scripts, byte by byte if need be.

#[cfg(test)]
mod blocking;
#[cfg(test)]
mod broken_servers;
#[cfg(test)]
mod pipelining;
#[cfg(test)]
mod support;
#[cfg(all(test, feature = "tokio"))]
mod tokio;
