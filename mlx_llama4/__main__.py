from mlx_llama4.cli.main import run

if __name__ == "__main__":
    run()
