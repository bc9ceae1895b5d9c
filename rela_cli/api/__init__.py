"""What `import rela_cli` offers to any training loop; each name comes in when it is first used."""
