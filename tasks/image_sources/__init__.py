"""Where images lie: folders, buckets, web pages, SFTP servers; what is listed there, and how it is read."""
