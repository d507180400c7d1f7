from fishs2_daemon.cli import main

main()
