//! The command line program: arguments in, exit status out. Everything else is in the library.

use std::process::ExitCode;

use fqvit_opt::budget::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    fqvit_opt::cli::main(std::env::args_os())
}
