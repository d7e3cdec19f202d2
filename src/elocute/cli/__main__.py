from elocute.cli import main

main()
