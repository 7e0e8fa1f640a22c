//! Benchmarks only: `cargo bench`, in this folder.
