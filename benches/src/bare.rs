pub(crate) fn measure(_: &crate::cli::Plan, _: &mut crate::report::Report) -> anyhow::Result<()> { Ok(()) }
