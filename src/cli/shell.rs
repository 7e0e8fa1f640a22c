//! What shells and manuals want to know: completions and man pages, both made from the arguments themselves.

use clap::CommandFactory;

use super::args::{Cli, CompletionsArgs, ManArgs};
use super::files::Files;
use super::{Failure, put_bytes};

pub fn completions(a: &CompletionsArgs) -> Result<bool, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(a.shell, &mut Cli::command(), "fqvit-opt", &mut text);
    put_bytes(&text, true);
    Ok(true)
}

pub fn man(a: &ManArgs) -> Result<bool, Failure> {
    let mut cmd = Cli::command();
    cmd.build();
    let page = |c: &clap::Command| -> Result<Vec<u8>, Failure> {
        let mut text = Vec::new();
        clap_mangen::Man::new(c.clone()).render(&mut text)?;
        Ok(text)
    };
    let Some(dir) = &a.dir else {
        let of = match &a.command {
            None => &cmd,
            Some(name) => cmd.find_subcommand(name).ok_or_else(|| {
                let known: Vec<&str> = cmd.get_subcommands().map(clap::Command::get_name).collect();
                format!("there is no command {name:?}; there are {}", known.join(", "))
            })?,
        };
        put_bytes(&page(of)?, true);
        return Ok(true);
    };
    let mut files = Files::default();
    let subcommands = cmd.get_subcommands().filter(|c| c.get_name() != "help");
    for c in std::iter::once(&cmd).chain(subcommands) {
        let name = c.get_display_name().unwrap_or_else(|| c.get_name());
        let path = dir.join(format!("{name}.1"));
        files.writes("--dir", &path)?;
        files.write(&path, &page(c)?)?;
    }
    files.commit()?;
    Ok(true)
}
