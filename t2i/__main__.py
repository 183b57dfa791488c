from t2i.cli.main import main

main()
