use crate::workspace::Workspace;
pub fn run(_: &Workspace, _: u64, _: Option<&str>, _: bool) -> anyhow::Result<()> {
    Ok(())
}
